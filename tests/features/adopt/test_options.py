"""The options of `quart adopt` in docs/from-flask.md."""

import re

from app.adopt.commands import adopt_command
from app.adopt.endpoints import OLD_ENDPOINTS
from app.adopt.shape import READ, SCHEMA
from app.settings import ROOT, Settings

DOCUMENT = (ROOT / "docs" / "from-flask.md").read_text()


def test_options_are_documented(settings: Settings) -> None:
    documented = re.findall(r"^\| `(--[a-z-]+)", DOCUMENT, re.MULTILINE)
    options = [option for each in adopt_command(settings).params for option in each.opts]
    assert sorted(documented) == sorted(options)


def test_columns_are_documented() -> None:
    row = next(line for line in DOCUMENT.splitlines() if line.startswith("| `--column"))
    assert set(READ) <= set(re.findall(r"`(\w+)`", row))


def test_documented_names_are_those_of_the_code() -> None:
    assert f"search_path={SCHEMA}" in DOCUMENT
    assert "url_for('public.register')" in DOCUMENT
    assert "public.register" in OLD_ENDPOINTS
