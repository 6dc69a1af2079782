"""Templates compiled in the build hook."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from jinja2 import FunctionLoader
from quart import Quart, render_template_string, stream_template_string
from quart import url_for as quart_url_for
from quart.signals import before_render_template, template_rendered
from werkzeug.routing import BuildError

from quart_upsun.tests.sample import create_app
from quart_upsun.tests.sample.settings import Settings
from quart_upsun.web import templating
from quart_upsun.web.templating import format_time


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory with the compiled templates of the sample application."""
    monkeypatch.setattr(templating, "COMPILED_DIRECTORY", tmp_path / "templates")
    return templating.compile_all("quart_upsun.tests.sample")


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.iterdir()}


async def test_changed_template_is_compiled_but_not_stored(
    compiled: Path, settings: Settings
) -> None:
    async def render(app: Quart) -> str:
        return await app.jinja_env.get_template("about.html").render_async()

    before = contents(compiled)
    assert len(before) == len(create_app(settings).jinja_env.list_templates())
    app = create_app(settings)
    file = Path(app.root_path) / "templates" / "about.html"
    app.jinja_env.loader = FunctionLoader(lambda _: ("changed", str(file), None))
    assert await render(app) == "changed"
    assert contents(compiled) == before


def test_compiled_templates_are_not_compiled_again(
    compiled: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings)
    monkeypatch.setattr(type(app.jinja_env), "compile", None)
    templating.load_all(app)


def test_times_are_rendered_in_utc_with_a_tooltip() -> None:
    value = datetime(2026, 11, 29, 9, 17, 3, 123, tzinfo=timezone(timedelta(hours=1)))
    assert format_time(value) == (
        '<time datetime="2026-11-29T08:17:03Z" title="29 Nov 2026 08:17:03 UTC" data-relative>'
        "29 Nov 2026 08:17 UTC</time>"
    )


async def load() -> str:
    return "loaded"


RENDERERS = pytest.mark.parametrize(
    "render", [render_template_string, lambda *a, **k: stream_to_string(*a, **k)]
)


@RENDERERS
async def test_template_variables_must_not_be_coroutines(
    app: Quart, render: Callable[..., Awaitable[str]]
) -> None:
    async with app.test_request_context("/"):
        with pytest.raises(TypeError, match=r"variable user .* is a coroutine.* await it in the"):
            await render("{{ user }}", user=load())


@RENDERERS
@pytest.mark.parametrize(
    "source",
    [
        "{{ load() }}",
        "{% for each in load() %}{{ each }}{% endfor %}",
        "{% macro m() %}{{ load() }}{% endmacro %}{{ m() }}",
    ],
)
async def test_templates_must_not_call_coroutine_functions(
    app: Quart, render: Callable[..., Awaitable[str]], source: str
) -> None:
    async with app.test_request_context("/"):
        with pytest.raises(TypeError, match=r"load\(\) is called in .* await it in the view"):
            await render(source, load=load)


async def stream_to_string(source: str, **values: Any) -> str:
    return "".join([part async for part in await stream_template_string(source, **values)])


async def test_templates_can_be_streamed(app: Quart) -> None:
    source = "{% for n in numbers %}{{ n }} {% endfor %}{{ request.path }}"
    async with app.test_request_context("/here"):
        assert await stream_to_string(source, numbers=range(3)) == "0 1 2 /here"


async def test_template_signals_and_context_processors_work(app: Quart) -> None:
    seen: list[str] = []

    async def record(sender: Quart, template: Any, context: dict[str, Any]) -> None:
        seen.append(context["name"])

    app.context_processor(processor)
    with before_render_template.connected_to(record), template_rendered.connected_to(record):
        async with app.test_request_context("/"):
            assert await render_template_string("{{ name }}") == "Ada"
    assert seen == ["Ada", "Ada"]


async def processor() -> dict[str, str]:
    return {"name": "Ada"}


def test_templates_compile_to_synchronous_code(app: Quart) -> None:
    code = app.jinja_env.compile("{% for n in x %}{{ n }}{% endfor %}", raw=True)
    assert "async" not in code
    assert "await" not in code


async def test_template_urls_equal_those_of_quart(app: Quart) -> None:
    url_for: Any = app.jinja_env.globals["url_for"]
    app.add_url_rule("/pages/<name>", "pages", load)
    arguments: list[tuple[str, dict[str, Any]]] = [
        ("pages", {"name": "a"}),
        ("pages", {"name": "1"}),
        ("pages", {"name": 1}),
        ("pages", {"name": True}),
        ("pages", {"name": "a", "q": "é &", "page": 2}),
        ("pages", {"name": "a", "page": 2, "q": None}),
        ("pages", {"name": "a", "tag": ["x", "y"]}),
        ("pages", {"name": "a" * 200}),
        ("pages", {"name": "a", "_external": True}),
        ("pages", {"name": "a", "_anchor": "top"}),
    ]
    for root_path in ("", "/mounted"):
        async with app.test_request_context("/", root_path=root_path):
            for endpoint, values in arguments * 2:
                assert url_for(endpoint, **values) == quart_url_for(endpoint, **values)
            with pytest.raises(BuildError):
                url_for("pages")


async def test_urls_are_not_cached_with_url_defaults(app: Quart) -> None:
    url_for: Any = app.jinja_env.globals["url_for"]
    app.add_url_rule("/<lang>/", "start", load)
    language = "en"

    @app.url_defaults
    def add_language(endpoint: str, values: dict[str, Any]) -> None:
        values.setdefault("lang", language)

    async with app.test_request_context("/"):
        assert url_for("start") == "/en/"
        language = "fr"
        assert url_for("start") == "/fr/"


async def test_imported_template_sees_the_globals_of_its_importer(settings: Settings) -> None:
    app = create_app(settings)
    templates = {
        "macros.html": "{% macro show() %}{{ owner | default('nobody') }}{% endmacro %}",
        "page.html": "{% from 'macros.html' import show %}{{ show() }}",
    }
    app.jinja_env.loader = FunctionLoader(templates.get)
    assert app.jinja_env.get_template("page.html").render() == "nobody"
    app.jinja_env.cache = None
    page = app.jinja_env.get_template("page.html", globals={"owner": "Ada"})
    assert page.render() == "Ada"
    app.jinja_env.globals["owner"] = "Grace"
    assert app.jinja_env.get_template("page.html").render() == "Grace"
