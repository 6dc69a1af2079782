"""What every template can use beside its own variables, and how they are compiled.

`python -m app.templating` compiles them all for the processes that will start; the build hook does
it, because each of them would take a third of a second for it while requests are held.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flask.templating import _default_template_ctx_processor
from jinja2 import FileSystemBytecodeCache, StrictUndefined
from jinja2.bccache import Bucket
from pydantic import SecretStr
from quart import Quart, get_flashed_messages, request, session

from app.settings import ROOT, Settings, parse_database_url
from app.user.login import current_user

COMPILED = ROOT / "build" / "templates"


class Compiled(FileSystemBytecodeCache):
    """Templates that were compiled before; those that have changed since are compiled as ever."""

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep nothing: an image is read-only."""


def init_app(app: Quart, settings: Settings) -> None:
    """Set up templates; called after the blueprints are registered."""
    app.jinja_env.undefined = StrictUndefined
    if COMPILED.is_dir() and not settings.traceback_pages:
        app.jinja_env.bytecode_cache = Compiled(str(COMPILED))
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
    async def load_templates() -> None:
        """Load before the first request, which would otherwise wait for it."""
        load_all(app)


def load_all(app: Quart) -> None:
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)


def compile_all(directory: Path) -> None:
    """Compile every template into `directory`, which is made; no variable is needed for it."""
    from app import create_app

    # What is there may come from other options, or another version of Jinja.
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    app = create_app(
        Settings(
            database_url=parse_database_url("postgresql://nowhere/none"),
            secret_key=SecretStr("of no worth: nothing is signed"),
        )
    )
    app.jinja_env.bytecode_cache = FileSystemBytecodeCache(str(directory))
    load_all(app)


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


if __name__ == "__main__":
    compile_all(COMPILED)
