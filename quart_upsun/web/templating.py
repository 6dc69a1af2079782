"""What every template can use beside its own variables, and how templates are compiled.

`python -m quart_upsun compile-templates` compiles all of them for the processes that will start;
the build hook does it, because each process would need a third of a second for it while requests
are held.
"""

import importlib
import shutil
from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import UTC, date, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from types import CoroutineType
from typing import Any, NoReturn

from jinja2 import ChoiceLoader, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket
from jinja2.filters import do_urlencode
from markupsafe import Markup
from pydantic import SecretStr
from quart import Quart, get_flashed_messages, session
from werkzeug.routing import BuildError

from quart_upsun.compat.jinja import FastContext, FastTemplate, speed_up_escaping
from quart_upsun.compat.quart import FLASK_CONTEXT_PROCESSOR, current_root_path, has_read_flashes
from quart_upsun.compat.wtforms import speed_up_inputs
from quart_upsun.database.url import parse_database_url
from quart_upsun.settings import Settings
from quart_upsun.switches.state import current_switches
from quart_upsun.web import forms
from quart_upsun.web.blocks import BlockChecker

COMPILED_DIRECTORY = Path("build", "templates")  # below the application's root
# Jinja's key of a template does not say whether its code is asynchronous.
CACHE_PATTERN = "__jinja2_sync_%s.cache"
# Of URLs, and of what is encoded for one. Longer values are mostly text that a client has sent.
MAX_CACHED, MAX_CACHED_CHARACTERS = 4096, 100
# Not those of `strftime()`, which takes four times as long.
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TOOLKIT_TEMPLATES = Path(__file__).parent.parent / "templates"


class PrecompiledCache(FileSystemBytecodeCache):
    """Templates that were compiled before; those that have changed since are compiled as ever."""

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep nothing: an image is read-only."""


class SyncContext(FastContext):
    """Refuses calls that would have to be awaited; their text would be on the page instead."""

    def refuse_coroutine(self, called: Any, coroutine: "CoroutineType[Any, Any, Any]") -> NoReturn:
        """Raise a TypeError that names the function and the template."""
        coroutine.close()
        name = getattr(called, "__qualname__", repr(called))
        _refuse(f"{name}() is called in {_describe(self.name)}, but is asynchronous")


class SyncTemplate(FastTemplate):
    """Renders without awaiting: Jinja's asynchronous code takes about twice as long.

    `render_template()` and `stream_template()` of Quart use it as they use any other.
    """

    async def render_async(self, *args: Any, **kwargs: Any) -> str:
        """Render the template.

        Raises:
            TypeError: a variable, or what is called in the template, would have to be awaited.
        """
        variables = dict(*args, **kwargs)
        self._check(variables)
        return self.render(variables)

    async def generate_async(self, *args: Any, **kwargs: Any) -> AsyncGenerator[str, object]:
        """Render the template in parts.

        Raises:
            TypeError: as `render_async()`.
        """
        variables = dict(*args, **kwargs)
        self._check(variables)
        for part in self.generate(variables):
            yield part

    def _check(self, variables: dict[str, Any]) -> None:
        for name, value in variables.items():
            if type(value) is CoroutineType:
                value.close()
                _refuse(f"The variable {name} of {_describe(self.name)} is a coroutine")


def _describe(template: str | None) -> str:
    return f"the template {template}" if template else "a template"


def _refuse(what: str) -> NoReturn:
    raise TypeError(f"{what}. Templates are rendered synchronously: await it in the view.")


class CachedUrls:
    """`url_for()` for templates, which ask for the same URLs again and again.

    Quart needs about 15 µs for one, and a page has a hundred. Only what depends on nothing but its
    arguments is kept: URLs within the application, by their rules alone.
    """

    def __init__(self, app: Quart) -> None:
        self._app = app
        # Endpoints by other names, which a feature may add.
        self._aliases: dict[str, str] = app.extensions.setdefault("endpoint_aliases", {})
        self._build = lru_cache(MAX_CACHED)(self._build_url)

    def url_for(self, endpoint: str, **values: Any) -> str:
        """Return a URL, as Quart's `url_for()` does; that of a static file has its digest."""
        root_path = current_root_path()
        # An endpoint that starts with a dot is relative to the blueprint of the request.
        if root_path is None or endpoint.startswith(".") or self._have_more_parts:
            return self._build_any(endpoint, values)
        for name, value in values.items():
            kind = type(value)
            if name.startswith("_") or not (
                kind is int or (kind is str and len(value) <= MAX_CACHED_CHARACTERS)
            ):
                return self._build_any(endpoint, values)
        return self._build(endpoint, root_path, tuple(values.items()))

    @cached_property
    def _have_more_parts(self) -> bool:
        """Whether URLs depend on more, which is known before the first request."""
        app = self._app
        return bool(
            app.url_default_functions or app.url_map.host_matching or app.config["SERVER_NAME"]
        )

    def _build_url(self, endpoint: str, root_path: str, values: tuple[tuple[str, Any], ...]) -> str:
        return self._build_any(endpoint, dict(values))

    def _build_any(self, endpoint: str, values: dict[str, Any]) -> str:
        if endpoint == "static":
            name = values.get("filename")
            values["filename"] = self._app.extensions.get("asset_manifest", {}).get(name, name)
        try:
            return self._app.url_for(endpoint, **values)
        except BuildError:
            if endpoint not in self._aliases:
                raise
        return self._app.url_for(self._aliases[endpoint], **values)


def init_app(app: Quart, settings: Settings) -> None:
    """Set up templates, with `site_name`, `preview` and `static_files` for each of them.

    A template that the application does not have is looked for in the toolkit's own: `error.html`,
    the pages for developers and of the API document, and a plain `layout.html` for them.
    """
    speed_up_escaping()
    speed_up_inputs()
    own = app.jinja_env.loader
    if own is not None and settings.traceback_pages:
        own = BlockChecker(own)
    app.jinja_env.loader = ChoiceLoader(
        [each for each in (own, FileSystemLoader(TOOLKIT_TEMPLATES)) if each is not None]
    )
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.is_async = False
    app.jinja_env.template_class = SyncTemplate
    app.jinja_env.context_class = SyncContext
    compiled = settings.root / COMPILED_DIRECTORY
    if compiled.is_dir() and not settings.traceback_pages:
        app.jinja_env.bytecode_cache = PrecompiledCache(str(compiled), CACHE_PATTERN)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters["date"] = format_date
    app.jinja_env.filters["time"] = format_time
    app.jinja_env.filters["urlencode"] = urlencode
    app.jinja_env.globals["url_for"] = CachedUrls(app).url_for
    app.jinja_env.globals["get_flashed_messages"] = flashed_messages
    app.jinja_env.globals["current_switches"] = current_switches
    app.jinja_env.globals["csrf_token"] = forms.csrf_token
    # The same for every page of a process: no work for the context of each.
    app.jinja_env.globals["site_name"] = settings.site_name
    app.jinja_env.globals.setdefault("static_files", frozenset())  # see `web.assets`
    app.jinja_env.globals["preview"] = settings.platform if settings.is_preview else None

    @app.before_serving
    async def prepare() -> None:
        """Load templates before the first request, which would otherwise wait for it."""
        for processors in app.template_context_processors.values():
            processors[:] = [each for each in processors if each is not FLASK_CONTEXT_PROCESSOR]
        load_all(app)


def load_all(app: Quart) -> None:
    """Load, and thereby compile, every template."""
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)


def compile_all(package: str) -> Path:
    """Compile every template of an application; no variable has to be set.

    Args:
        package: has `create_app(settings)`, and `Settings` in its module `settings`.

    Returns:
        The directory, which is made.
    """
    kind: type[Settings] = importlib.import_module(f"{package}.settings").Settings
    settings = kind(
        database_url=parse_database_url("postgresql://nowhere/none"),
        secret_key=SecretStr("of no worth: nothing is signed"),
    )
    directory = settings.root / COMPILED_DIRECTORY
    # What is there may come from other options, or another version of Jinja.
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    app: Quart = importlib.import_module(package).create_app(settings)
    app.jinja_env.bytecode_cache = FileSystemBytecodeCache(str(directory), CACHE_PATTERN)
    load_all(app)
    return directory


def format_time(value: datetime) -> Markup:
    """Render a time as a `<time>` element, with the exact time in UTC as its tooltip.

    The text is absolute, so that a cached page stays right. `assets/js/lib/times.js` makes it
    relative ("5 minutes ago").
    """
    value = value.astimezone(UTC)
    day = f"{value.day:02} {MONTHS[value.month - 1]} {value.year:04} "
    exact = value.isoformat()[:19]
    return Markup(  # noqa: S704 digits and names of months
        f'<time datetime="{exact}Z" title="{day}{exact[11:]} UTC" data-relative>'
        f"{day}{exact[11:16]} UTC</time>"
    )


def format_date(value: date) -> Markup:
    """Render a date as a `<time>` element."""
    day = f"{value.day} {MONTHS[value.month - 1]} {value.year}"
    return Markup(f'<time datetime="{value.isoformat()}">{day}</time>')  # noqa: S704 digits, months


def urlencode(value: Any) -> str:
    """Encode a value for a URL, as Jinja's filter does; the tags of a list come again and again."""
    if type(value) is str and len(value) <= MAX_CACHED_CHARACTERS:
        return _urlencode_text(value)
    return do_urlencode(value)


@lru_cache(MAX_CACHED)
def _urlencode_text(value: str) -> str:
    return do_urlencode(value)


def flashed_messages(
    with_categories: bool = False, category_filter: Iterable[str] = ()
) -> Sequence[Any]:
    """Return the messages for this page; without any, leave the session alone.

    Reading the session makes an answer depend on its cookie, and uncacheable.
    """
    if "_flashes" not in session and not has_read_flashes():
        return []
    return get_flashed_messages(with_categories, category_filter)
