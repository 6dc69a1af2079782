"""The guide names what exists, and what it says to delete can be deleted."""

import re
from pathlib import Path
from shutil import copytree, rmtree

import pytest

from app.settings import ROOT
from tests.development.clone import running, share_packages
from tests.repository import checkout, tracked_files

DOCUMENT = ROOT / "docs" / "adding-a-feature.md"
EXAMPLE = "the example"
# What is removed -> the names in FEATURES that go.
REMOVALS = {
    "fetching": ["fetching"],
    "import and export": ["bookmarks"],
    "access tokens": ["tokens"],
    EXAMPLE: ["links", "fetching", "bookmarks"],
}
PACKAGES = {"tokens": r"app[./]user[./]tokens"}
TIMEOUT_SECONDS = 1800
# What looks at all routes, tables, jobs, columns and documents, beside the linters.
TESTS = "tests/unit tests/documents tests/features"


def section(removal: str) -> str:
    found = DOCUMENT.read_text().partition(f"\n## Removing {removal}\n")[2]
    assert found
    return found.partition("\n## ")[0]


def deleted(removal: str) -> list[str]:
    """Return the files and folders that are deleted."""
    found = re.search(r"```sh\n(.*?)```", section(removal), re.DOTALL)
    assert found
    command, *data = found[1].replace("\\\n", " ").splitlines()
    assert data == (["rm -rf .data/postgres .rehearsal"] if removal == EXAMPLE else [])
    git, rm, recursively, *names = command.split()
    assert (git, rm, recursively) == ("git", "rm", "-r")
    return names


def test_what_it_names_exists() -> None:
    files = tracked_files()
    pattern = r"`((?:app|tests|docs|assets|benchmarks|quart_upsun)/[\w./]+)`"
    named = re.findall(pattern, DOCUMENT.read_text())
    assert len(named) > 10
    for path in [*named, *(path for each in REMOVALS for path in deleted(each))]:
        assert path in files or any(name.startswith(f"{path.rstrip('/')}/") for name in files), path


def remove(removal: str, tree: Path) -> None:
    """Remove a feature from a copy of the repository, as the document says."""
    for path in deleted(removal):
        if (tree / path).is_dir():
            rmtree(tree / path)
        else:
            (tree / path).unlink()
    wiring = tree / "app" / "__init__.py"
    before, names, after = re.split(
        r"^(FEATURES = \[.*?\])", wiring.read_text(), maxsplit=1, flags=re.DOTALL | re.MULTILINE
    )
    for name in REMOVALS[removal]:
        assert f"`{name}`" in section(removal)
        names, count = re.subn(rf"\b{name}\b(?:, )?", "", names)
        assert count == 1, name
        before, count = re.subn(rf"(from app\S* import .*?)\b{name}\b(?:, )?", r"\1", before)
        assert count == 1, name
    before = re.sub(r"^from \S+ import $\n", "", before, flags=re.MULTILINE)
    wiring.write_text(re.sub(", $", "", before, flags=re.M) + names.replace(", ]", "]") + after)
    if removal == EXAMPLE:
        styles = tree / "assets" / "css" / "main.scss"
        assert '@import "links";' in section(removal)
        styles.write_text(styles.read_text().replace('@import "links";\n', ""))
    # Rows of tables and lists that name a file which is gone.
    names = [*deleted(removal), *(f"({Path(path).name})" for path in deleted(removal))]
    gone = re.compile("|".join(map(re.escape, names)))
    tests = {path.name for path in tree.rglob("test_*.py")}
    for document in (tree / "README.md", tree / "SECURITY.md", *(tree / "docs").glob("*.md")):
        document.write_text(
            "".join(
                line
                for line in document.read_text().splitlines(keepends=True)
                if not line.startswith(("|", "- "))
                or not (gone.search(line) or {*re.findall(r"\btest_\w+\.py", line)} - tests)
            )
        )


@pytest.mark.parametrize("removal", REMOVALS)
def test_nothing_else_names_it(tmp_path: Path, removal: str) -> None:
    tree = checkout(tmp_path)
    remove(removal, tree)
    for name in REMOVALS[removal]:
        package = PACKAGES.get(name, rf"(?:app|features)[./]{name}")
        named = re.compile(rf"\b{package}\b|from app import [^\n]*\b{name}\b")
        for path in tree.rglob("*.py"):
            if path != tree / "app" / "__init__.py":  # `make format` removes the import
                assert not named.search(path.read_text()), path


# It takes as long as builds do, and must not disturb tests that measure time.
@pytest.mark.xdist_group("builds")
@pytest.mark.parametrize("removal", REMOVALS)
def test_the_rest_stands_by_itself(tmp_path: Path, removal: str) -> None:
    tree = checkout(tmp_path / "tree")
    remove(removal, tree)
    share_packages(tree)

    def run(*command: str) -> None:
        with running(tree, *command) as process:
            assert process.wait(TIMEOUT_SECONDS) == 0, process.output

    # Tests of the documents look at what Git has. A link in the place of a folder is not ignored.
    run("git", "init", "--quiet")
    (tree / ".git" / "info" / "exclude").write_text(".venv\nnode_modules\n")
    run("git", "add", "--all")
    cache = ROOT / ".mypy_cache"  # most of the tree is as it was when `make lint` was run last
    if cache.is_dir():
        copytree(cache, tree / cache.name)
    for verb in ("format", "lint"):
        run("make", verb)
    # All features are tested without the example; of the others, what they have in common.
    tests = (
        TESTS if removal == EXAMPLE else "tests/unit tests/documents tests/features/test_policy.py"
    )
    run("make", "test", f"ARGS=-n 0 {tests}")
