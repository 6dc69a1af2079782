"""The recipe names what exists, and what it says to delete can be deleted."""

import os
import re
from pathlib import Path
from shutil import copytree, rmtree

import pytest

from app.settings import ROOT
from tests.development.clone import running, share_packages
from tests.repository import checkout, tracked_files

DOCUMENT = ROOT / "docs" / "adding-a-feature.md"
SECONDS = 1800
# What looks at all routes, tables, jobs, columns and documents, beside the linters. The rest of the
# suite takes as long as it does here: REST=tests in the environment runs that as well.
REST = os.environ.get(
    "REST",
    "tests/unit tests/documents tests/features/api/test_openapi.py"
    " tests/features/test_accounts.py tests/features/test_schedules.py"
    " tests/features/test_policy.py tests/features/test_sanitize.py",
)


WHOLE = "the reading list"
FEATURES = (WHOLE, "fetching", "import and export")


def block(feature: str, language: str) -> str:
    section = DOCUMENT.read_text().partition(f"\n## Starting without {feature}\n")[2]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


def deleted(feature: str) -> list[str]:
    """The files and folders that go."""
    command, *data = block(feature, "sh").replace("\\\n", " ").splitlines()
    assert data == (["rm -rf .data/postgres .rehearsal"] if feature == WHOLE else [])
    git, rm, recursively, *names = command.split()
    assert (git, rm, recursively) == ("git", "rm", "-r")
    return names


def removed(feature: str) -> dict[str, list[str]]:
    """By file, the pieces of it that go."""
    parts = re.split(r"^--- (.+)\n", block(feature, "diff"), flags=re.MULTILINE)[1:]
    return {
        name: [
            "".join(f"{line[1:]}\n" for line in piece.splitlines())
            for piece in re.split(r"\n\n", text.strip("\n"))
        ]
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_what_it_names_exists() -> None:
    files = tracked_files()
    named = re.findall(r"`((?:app|tests|docs|assets|benchmarks)/[\w./]+)`", DOCUMENT.read_text())
    assert len(named) > 10
    for path in [*named, *(path for each in FEATURES for path in (*deleted(each), *removed(each)))]:
        assert path in files or any(name.startswith(f"{path.rstrip('/')}/") for name in files), path


def remove(feature: str, tree: Path) -> None:
    """Remove a feature from a copy of the repository, as the document says."""
    for path in deleted(feature):
        if (tree / path).is_dir():
            rmtree(tree / path)
        else:
            (tree / path).unlink()
    for name, pieces in removed(feature).items():
        text = (tree / name).read_text()
        for piece in pieces:
            assert text.count(piece) == 1, f"{name} does not have once:\n{piece}"
            text = text.replace(piece, "")
        (tree / name).write_text(text)
    gone = re.compile("|".join(map(re.escape, deleted(feature))))
    for name in ("README.md", "SECURITY.md"):
        lines = (tree / name).read_text().splitlines(keepends=True)
        rows = [line for line in lines if line.startswith("|") and gone.search(line)]
        (tree / name).write_text("".join(line for line in lines if line not in rows))


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_can_be_removed(tmp_path: Path, feature: str) -> None:
    tree = checkout(tmp_path)
    remove(feature, tree)
    module = {"fetching": "fetching", "import and export": "bookmarks", WHOLE: r"\w*links"}[feature]
    named = re.compile(rf"\b(app|features)[./]{module}\b")
    for path in tree.rglob("*.py"):
        assert not named.search(path.read_text()), path


# It takes as long as builds do, and shall not be in the way of what measures time.
@pytest.mark.xdist_group("builds")
def test_the_rest_stands_by_itself(tmp_path: Path) -> None:
    tree = checkout(tmp_path / "tree")
    remove(WHOLE, tree)
    share_packages(tree)

    def run(*command: str) -> None:
        with running(tree, *command) as process:
            assert process.wait(SECONDS) == 0, process.output

    # Tests of the documents look at what Git has. A link in the place of a folder is not ignored.
    run("git", "init", "--quiet")
    (tree / ".git" / "info" / "exclude").write_text(".venv\nnode_modules\n")
    run("git", "add", "--all")
    cache = ROOT / ".mypy_cache"  # most of the tree is as it was when `make lint` was run last
    if cache.is_dir():
        copytree(cache, tree / cache.name)
    for verb in ("format", "lint"):
        run("make", verb)
    run("make", "test", f"ARGS=-n 0 {REST}")
