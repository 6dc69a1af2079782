"""Take over the requirements of the release's packages into the application's pyproject.toml."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# The application needs the dependencies of this package in production, and those of the others for
# development only.
TOOLKIT = "quart_upsun"
# The optional dependencies that every application needs, for its tests. It chooses the others.
TESTING = "testing"
# Table of pyproject.toml -> the line that begins the list of its requirements.
LISTS = {"dependencies": r"^dependencies = \[\n", "dev": r"^dev = \[\n"}


@dataclass
class RequirementChanges:
    """What an upgrade changes in pyproject.toml."""

    pyproject: str
    """The new text."""
    changes: list[str] = field(default_factory=list)
    """The changes, such as `httpx>=0.28 -> httpx>=0.29`."""
    by_hand: list[str] = field(default_factory=list)
    """What is left to decide."""


def merge(root: Path, release: Path, packages: Iterable[str]) -> RequirementChanges:
    """Return pyproject.toml with what changed between two releases.

    A requirement that the application has changed is not overwritten.

    Args:
        root: the application, with the packages of its release.
        release: the newer release.
        packages: the packages that are replaced.
    """
    merged = RequirementChanges((root / "pyproject.toml").read_text("utf-8"))
    before, after = read(root, packages), read(release, packages)
    present = application_requirements(merged.pyproject)
    for name, (group, new) in after.items():
        _, old = before.get(name, (None, None))
        current = present.get(name)
        if new in (old, current):
            continue
        if current is None and old is None:
            if group is not None:
                insert(merged, group, new)
        elif current is not None and current == old:
            merged.pyproject = merged.pyproject.replace(f'"{current}"', f'"{new}"', 1)
            merged.changes.append(f"{current} -> {new}")
        else:
            merged.by_hand.append(
                f"pyproject.toml requires {current or f'no {name}'}, and the release {new}."
            )
    merged.by_hand += [
        f"The release no longer requires {name}. Remove it from pyproject.toml if the application"
        " does not use it."
        for name in before
        if name not in after and name in present
    ]
    return merged


def read(root: Path, packages: Iterable[str]) -> dict[str, tuple[str | None, str]]:
    """Return the requirements of packages: name -> list, requirement.

    The list is the one in pyproject.toml that a requirement belongs to, or None if it is optional.
    """
    found: dict[str, tuple[str | None, str]] = {}
    own: set[str] = set()
    for package in packages:
        path = root / package / "pyproject.toml"
        if not path.exists():
            continue
        project = tomllib.loads(path.read_text("utf-8"))["project"]
        own.add(name_of(project["name"]))
        group = "dependencies" if package == TOOLKIT else "dev"
        for requirement in project.get("dependencies", []):
            found.setdefault(name_of(requirement), (group, requirement))
        for extra, requirements in project.get("optional-dependencies", {}).items():
            for requirement in requirements:
                found.setdefault(
                    name_of(requirement), ("dev" if extra == TESTING else None, requirement)
                )
    return {name: each for name, each in found.items() if name not in own}


def name_of(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def application_requirements(pyproject: str) -> dict[str, str]:
    """Return the requirements of the application by name."""
    project = tomllib.loads(pyproject)["project"]
    extras = project.get("optional-dependencies", {}).values()
    listed = [*project.get("dependencies", []), *(each for extra in extras for each in extra)]
    return {name_of(requirement): requirement for requirement in listed}


def insert(merged: RequirementChanges, group: str, requirement: str) -> None:
    """Add a requirement to one of the lists."""
    merged.pyproject, count = re.subn(
        LISTS[group],
        lambda found: f'{found[0]}  "{requirement}",\n',
        merged.pyproject,
        count=1,
        flags=re.MULTILINE,
    )
    if count:
        merged.changes.append(f"new: {requirement}")
    else:
        merged.by_hand.append(f"Add {requirement} to `{group}` in pyproject.toml.")
