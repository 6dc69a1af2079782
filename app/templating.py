"""What every template can use beside its own variables."""

from collections.abc import Sequence
from typing import Any

from flask.templating import _default_template_ctx_processor
from jinja2 import StrictUndefined
from quart import Quart, get_flashed_messages, request, session

from app.settings import Settings
from app.user.login import current_user


def init_app(app: Quart, settings: Settings) -> None:
    """Set up templates; called after the blueprints are registered."""
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.globals["get_flashed_messages"] = flashed_messages
    # The same for every page of a process: no work for the context of each.
    app.jinja_env.globals["preview"] = settings.platform if settings.is_preview else None
    app.context_processor(page)
    for processors in app.template_context_processors.values():
        # Every blueprint brings Flask's along, beside Quart's own of the same content; being
        # synchronous it costs each page a thread.
        processors[:] = [each for each in processors if each is not _default_template_ctx_processor]

    @app.before_serving
    async def compile_templates() -> None:
        """Compile before the first request, which would otherwise wait for it."""
        for name in app.jinja_env.list_templates():
            app.jinja_env.get_template(name)


async def page() -> dict[str, Any]:
    """Return who is logged in, and whether the navigation bar has the login form.

    It does for who is not, except on the login page, where the form is the page's own.
    """
    user = current_user()
    return {"current_user": user, "login_bar": user is None and request.path != "/login/"}


def flashed_messages(with_categories: bool = False) -> Sequence[Any]:
    """Return the messages for this page; without any, leave the session alone.

    Reading the session makes an answer depend on its cookie, and uncacheable.
    """
    if "_flashes" not in session:
        return []
    return get_flashed_messages(with_categories)
