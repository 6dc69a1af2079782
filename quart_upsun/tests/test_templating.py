"""Templates compiled in the build hook."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from jinja2 import FunctionLoader
from quart import Quart

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
        '<time datetime="2026-11-29T08:17:03+00:00" title="29 Nov 2026 08:17:03 UTC" data-relative>'
        "29 Nov 2026 08:17 UTC</time>"
    )
