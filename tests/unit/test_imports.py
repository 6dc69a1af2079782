"""Rules for imports between packages. `pytest -s` prints the import graph.

The application imports the toolkit. The toolkit and the rehearsal import neither each other nor the
application, because each is a separate distribution. There are no import cycles between packages.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from app.settings import ROOT
from tests.repository import tracked_files

SOURCES = [
    Path(name) for name in tracked_files() if name.endswith(".py") and (ROOT / name).exists()
]
# `alembic` is the library, not the folder of the same name.
LOCAL_MODULES = {path.parts[0].removesuffix(".py") for path in SOURCES} - {"alembic"}
"""The modules and packages in the root of the repository, including the tests."""

# Distribution -> packages of this repository that it may import. Its tests are not checked.
ALLOWED = {
    "embedded_postgres": {"embedded_postgres"},
    "quart_upsun": {"quart_upsun"},
    "rehearsal": {"embedded_postgres", "rehearsal"},
}
# Feature -> features that it may import in addition to `user`.
BUILT_ON = {"bookmarks": {"links"}, "fetching": {"links"}, "live": {"links"}}
FEATURES = {path.parts[1] for path in SOURCES if path.parts[0] == "app" and len(path.parts) > 2}
SHARED_FEATURES = {"user"}
IMPORTS_ALL_FEATURES = {"app"}  # create_app

Graph = Mapping[str, set[str]]


def imported(text: str, package: tuple[str, ...], modules: set[str]) -> Iterator[str]:
    """Yield the full names of all modules that a module imports, at any level.

    Imports for type checkers (`if TYPE_CHECKING`) are ignored.

    Args:
        text: the module's source code.
        package: the package that contains the module.
        modules: all modules of this repository, to recognize `from package import module`.
    """
    for node in statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in modules else base


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below a node except those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (each for branch in child.orelse for each in (branch, *statements(branch)))
            continue
        yield child
        yield from statements(child)


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def package_of(module: str) -> str:
    """Return the package of a module for the import graph, such as `quart_upsun.jobs`."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] in {"app", "quart_upsun"} else 1])


def package_is(package: str, distribution: str) -> bool:
    return package.partition(".")[0] == distribution


def import_graph() -> Graph:
    """Return the local packages that each package imports, without those of tests."""
    modules = {module_name(path) for path in SOURCES}
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        if path.parts[0] not in {*ALLOWED, "app"} or "tests" in path.parts:
            continue
        package = package_of(module_name(path))
        found[package].update(
            package_of(name)
            for name in imported((ROOT / path).read_text(), path.parent.parts, modules)
            if name.partition(".")[0] in LOCAL_MODULES and package_of(name) != package
        )
    return found


GRAPH = import_graph()


def cycles(graph: Graph) -> set[tuple[str, ...]]:
    """Return the groups of packages that import each other directly or indirectly."""
    reached = {package: reachable(graph, package) for package in graph}
    return {
        tuple(sorted({package, *(each for each in reach if package in reached.get(each, ()))}))
        for package, reach in reached.items()
        if package in reach
    }


def reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def test_prints_the_import_graph() -> None:
    for package, imports in sorted(GRAPH.items()):
        print(f"{package:<28} -> {', '.join(sorted(imports)) or '-'}")
    assert len(GRAPH) > 30


@pytest.mark.parametrize("distribution", ALLOWED)
def test_distributions_import_no_other_distribution(distribution: str) -> None:
    own = {name: found for name, found in GRAPH.items() if package_is(name, distribution)}
    assert own
    forbidden = LOCAL_MODULES - ALLOWED[distribution]
    assert {"app", "conftest", "development", "tests"} <= forbidden
    wrong = {
        f"{package} imports {name}"
        for package, imports in own.items()
        for name in imports
        if name.partition(".")[0] in forbidden
    }
    assert not wrong


def test_application_imports_only_the_toolkit() -> None:
    imports = {
        name for package, found in GRAPH.items() if package_is(package, "app") for name in found
    }
    assert {name.partition(".")[0] for name in imports} == {"app", "quart_upsun"}


def test_toolkit_packages_have_no_import_cycles() -> None:
    graph = {name: found for name, found in GRAPH.items() if package_is(name, "quart_upsun")}
    assert not cycles(graph)


def test_features_have_no_import_cycles() -> None:
    features = {f"app.{name}" for name in FEATURES}
    graph = {name: found & features for name, found in GRAPH.items() if name in features}
    assert not cycles(graph)


def test_features_are_imported_only_by_declared_dependents() -> None:
    wrong = {
        f"{package} imports {name}"
        for package, imports in GRAPH.items()
        if package_is(package, "app") and package not in IMPORTS_ALL_FEATURES
        for name in imports
        if name.removeprefix("app.") in FEATURES - SHARED_FEATURES
        and name.removeprefix("app.") not in BUILT_ON.get(package.removeprefix("app."), set())
    }
    assert not wrong


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import app.settings as x, os", ["app.settings", "os"]),
        ("from tests import repository", ["tests.repository"]),
        ("def f():\n    from development.programs import require", ["development.programs"]),
        ("from . import context", ["rehearsal.checks.context"]),
        ("from ..findings import Finding", ["rehearsal.findings"]),
        ("if TYPE_CHECKING:\n    import app\nelse:\n    import quart_upsun", ["quart_upsun"]),
    ],
)
def test_finds_every_form_of_import(text: str, names: list[str]) -> None:
    modules = {"rehearsal.checks.context", "tests.repository"}
    assert list(imported(text, ("rehearsal", "checks"), modules)) == names


def test_finds_import_cycles() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str](), "e": {"a"}}
    assert cycles(graph) == {("a", "b", "c")}
