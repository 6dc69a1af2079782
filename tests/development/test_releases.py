"""The versions of a release agree wherever they are written. docs/releasing.md is the procedure."""

import importlib
import json
import re
import tomllib
from datetime import date

import pytest

from app.settings import ROOT
from development.upgrade.release import NOTES, key, read_release
from quart_upsun.deprecation import renamed
from tests.repository import tracked_files

RELEASE = read_release(ROOT, "This repository")
PROJECTS = ("", "quart_upsun/", "rehearsal/", "embedded_postgres/")
HEADING = re.compile(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", re.MULTILINE)


def test_versions_agree() -> None:
    versions = {
        f"{folder}pyproject.toml": tomllib.loads((ROOT / folder / "pyproject.toml").read_text())[
            "project"
        ]["version"]
        for folder in PROJECTS
    }
    versions["package.json"] = json.loads((ROOT / "package.json").read_text())["version"]
    versions["package-lock.json"] = json.loads((ROOT / "package-lock.json").read_text())["version"]
    versions[NOTES] = RELEASE.notes.release[0].version
    assert set(versions.values()) == {RELEASE.version}, versions


def test_changelog_and_notes_have_the_same_releases() -> None:
    listed = HEADING.findall((ROOT / "CHANGELOG.md").read_text())
    assert [(version, date.fromisoformat(day)) for version, day in listed] == [
        (notes.version, notes.date) for notes in RELEASE.notes.release
    ]
    assert listed


def test_notes_are_sorted_and_complete() -> None:
    versions = [notes.version for notes in RELEASE.notes.release]
    assert versions == sorted(set(versions), key=key, reverse=True)
    for name in RELEASE.notes.optional:
        assert name.partition("/")[0] in RELEASE.notes.packages


def test_releases_contain_no_links() -> None:
    """`make upgrade` rejects them."""
    assert [name for name in tracked_files() if (ROOT / name).is_symlink()] == []


def find(dotted: str) -> object:
    """Return what a full name refers to; None if it does not exist."""
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None


def problems(old: str, new: str, removed_in: str, version: str) -> list[str]:
    """Return what is wrong with a renamed function in a version of the toolkit."""
    found = []
    if find(new) is None:
        found.append(f"{new} does not exist")
    if key(removed_in) <= key(version):
        if find(old) is not None:
            found.append(f"{old} still exists in {version}")
    elif getattr(find(old), "__wrapped__", None) is not find(new):
        found.append(f"{old} does not warn and call {new}; see quart_upsun.deprecation.renamed")
    return found


def test_renamed_functions_warn_until_they_are_removed() -> None:
    renamed_functions = [each for notes in RELEASE.notes.release for each in notes.renamed]
    for each in renamed_functions:
        assert problems(each.old, each.new, each.removed_in, RELEASE.version) == []


def new_name() -> None:
    """A renamed function."""


old_name = renamed(new_name, f"{__name__}.old_name", removed_in="0.3.0")


@pytest.mark.parametrize(
    ("old", "new", "version", "expected"),
    [
        ("old_name", "new_name", "0.2.0", None),
        ("gone", "new_name", "0.3.0", None),
        ("old_name", "new_name", "0.3.0", "old_name still exists in 0.3.0"),
        ("old_name", "missing", "0.2.0", "missing does not exist"),
        ("gone", "new_name", "0.2.0", "gone does not warn and call"),
        ("new_name", "new_name", "0.2.0", "new_name does not warn and call"),
    ],
)
def test_finds_mistakes_in_renamed_functions(
    old: str, new: str, version: str, expected: str | None
) -> None:
    found = problems(f"{__name__}.{old}", f"{__name__}.{new}", "0.3.0", version)
    if expected is None:
        assert found == []
    else:
        assert expected in found[0]
