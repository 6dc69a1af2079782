"""Packages that stand alone import nothing of the others in this repository."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import ROOT
from tests.repository import tracked_files

# Package -> what it may import of this repository, its tests included.
ALLOWED = {
    "embedded_postgres": {"embedded_postgres"},
    # alembic is the library here, and not the folder of that name.
    "quart_upsun": {"alembic", "embedded_postgres", "quart_upsun"},
    "rehearsal": {"embedded_postgres", "rehearsal"},
}
SOURCES = [Path(name) for name in tracked_files() if name.endswith(".py")]
HERE = {path.parts[0].removesuffix(".py") for path in SOURCES}
"""What can be imported from the root of the repository, the tests included."""


def imported(text: str, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the first part of each name that a module imports, wherever in it that is.

    Args:
        text: the source of the module.
        package: the package that the module is in.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join((*above, node.module or ""))).split(".")[:1]


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_of_its_own_imports_none_of_the_others(package: str) -> None:
    sources = [path for path in SOURCES if path.parts[0] == package and (ROOT / path).exists()]
    assert len(sources) > 2
    forbidden = HERE - ALLOWED[package]
    assert {"app", "conftest", "development", "tests"} <= forbidden
    wrong = {
        f"{path} imports {name}"
        for path in sources
        for name in imported((ROOT / path).read_text(), path.parts[:-1])
        if name in forbidden
    }
    assert not wrong


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import app.settings as x, os", ["app", "os"]),
        ("from tests import repository", ["tests"]),
        ("def f():\n    from development.checks import check_node", ["development"]),
        ("from . import tree", ["rehearsal"]),
        ("from ..findings import Finding", ["rehearsal"]),
    ],
)
def test_every_form_of_an_import_is_seen(text: str, names: list[str]) -> None:
    assert list(imported(text, ("rehearsal", "checks"))) == names
