"""Removing a feature with the commands of docs/adding-a-feature.md."""

import os
import re
import subprocess
from pathlib import Path
from shutil import copytree

import pytest

from app.settings import ROOT
from tests.development.clone import running, share_packages
from tests.repository import checkout

DOCUMENT = ROOT / "docs" / "adding-a-feature.md"
FORMAT = "make format\n"
SECONDS = 1800
# Heading of the commands -> pattern of names that must not occur afterwards.
REMOVALS = {
    "the example": r"(app|templates|features)[./](links|fetching|bookmarks)\b|pages_links"
    r"|browser[./](worker|test_links)|_links\.scss|adding-a-feature|test_side_by_side",
    "fetching": r"(app|templates|features)[./]fetching\b|browser[./](worker|test_fetching)",
    "import and export": r"(app|templates|features)[./]bookmarks\b|bookmarks\.js|test_uploads"
    r"|test_(exports|bookmark_file)\.py",
    "access tokens": r"user[./]tokens\b|(templates|features)[./]tokens\b|\btokens\.index"
    r"|account/tokens|access_tokens\.py",
}
# Tests that run after the removal: all for the example; otherwise those that cover all
# routes and those of related features. Set REST=tests/features to run more.
SHARED = ("tests/unit", "tests/documents", "tests/features/test_policy.py")
REST = {
    "the example": ("tests/unit", "tests/documents", "tests/features"),
    "fetching": (*SHARED, "tests/features/links/test_views.py", "tests/features/bookmarks"),
    "import and export": (*SHARED, "tests/features/links/test_views.py", "tests/features/fetching"),
    "access tokens": (*SHARED, "tests/features/api", "tests/features/links/test_api.py"),
}
# The changelog is history, and `make bench` rewrites the benchmark results.
NOT_SCANNED = {"CHANGELOG.md", "docs/performance.md", "docs/adding-a-feature.md"}


def commands(feature: str) -> str:
    """Return the commands that remove a feature."""
    section = DOCUMENT.read_text().partition(f"\n### Remove {feature}\n")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found
    assert FORMAT in found[1]
    return found[1]


def remove(feature: str, tree: Path) -> None:
    """Copy the repository and remove a feature from the copy, without running `make format`."""
    checkout(tree)

    def run(*command: str) -> None:
        subprocess.run(command, cwd=tree, check=True)

    run("git", "init", "--quiet")
    # .gitignore covers these directories, but not symbolic links of the same name.
    (tree / ".git" / "info" / "exclude").write_text(".venv\nnode_modules\n")
    run("git", "add", "--all")
    # `git rm` requires the files to be committed.
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    run("git", *author, "commit", "--quiet", "--no-gpg-sign", "--message", "A clone")
    run("bash", "-euc", commands(feature).replace(FORMAT, ""))


def test_paths_in_the_document_exist() -> None:
    named = re.findall(r"`((?:app|tests|assets|quart_upsun)/[\w./-]+)`", DOCUMENT.read_text())
    assert len(named) > 10
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("feature", REMOVALS)
def test_no_file_mentions_a_removed_feature(tmp_path: Path, feature: str) -> None:
    pattern = re.compile(REMOVALS[feature])
    before = {path for path in checkout(tmp_path / "before").rglob("*") if path.is_file()}
    assert any(pattern.search(str(path)) for path in before)
    tree = tmp_path / "after"
    remove(feature, tree)
    files = [path for path in tree.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert 100 < len(files) < len(before)
    left = []
    for path in files:
        name = str(path.relative_to(tree))
        if name not in NOT_SCANNED:
            text = path.read_bytes().decode(errors="replace")
            left += [f"{name}: {found[0]}" for found in pattern.finditer(f"{name}\n{text}")]
    assert left == []


# Slow: in the group of the builds, so that it does not disturb tests that measure time.
@pytest.mark.xdist_group("builds")
@pytest.mark.parametrize("feature", REMOVALS)
def test_other_features_work_without_the_removed_one(tmp_path: Path, feature: str) -> None:
    tree = tmp_path / "tree"
    remove(feature, tree)
    share_packages(tree)

    def run(*command: str) -> None:
        with running(tree, *command) as process:
            assert process.wait(SECONDS) == 0, process.output

    cache = ROOT / ".mypy_cache"  # most files are unchanged since the last `make lint`
    if cache.is_dir():
        copytree(cache, tree / cache.name)
    for target in ("format", "lint"):
        run("make", target)
    tests = os.environ.get("REST") or " ".join(REST[feature])
    run("make", "test", f"ARGS=-n 0 {tests}")
