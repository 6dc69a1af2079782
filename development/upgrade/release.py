"""A release of the toolkit: its version, its notes, and which applications can upgrade to it."""

import platform
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from packaging.specifiers import SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, ValidationError

NOTES = "quart_upsun/releases.toml"
FORMAT = 1
# Package of a release -> its name in the package's pyproject.toml.
DISTRIBUTIONS = {"quart_upsun": "quart-upsun", "rehearsal": "upsun-rehearse"}

VersionText = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
DottedName = Annotated[str, Field(pattern=r"^quart_upsun(\.\w+)+$")]
# Names inside the packages only: notes cannot make an upgrade write anywhere else.
PackageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
PackagePath = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(/[a-z0-9_]+)+$")]
MigrationPath = Annotated[str, Field(pattern=r"^alembic/versions/\w+\.py$")]


class UpgradeError(Exception):
    """The upgrade is refused, and nothing was changed. The message says what to do."""


class Project(BaseModel):
    """The table `project` of a package's pyproject.toml."""

    name: str
    version: VersionText
    requires_python: str = Field("", alias="requires-python")


class Notes(BaseModel):
    """A part of the notes. Unknown keys are errors, so that no advice is lost."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Renamed(Notes):
    """A function with a new name."""

    old: DottedName
    new: DottedName
    removed_in: VersionText
    """The release that removes the old name. Until then it works, with a warning."""


class Removed(Notes):
    """A function, class or constant that no longer exists."""

    name: DottedName
    instead: str


class Setting(Notes):
    """An environment variable with a new name, or without a use."""

    old: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
    new: str | None = None
    note: str = ""


class Step(Notes):
    """Something to do by hand."""

    text: str
    search: str | None = None
    """Text to find in the application's files: the places to change."""
    files: tuple[str, ...] = ()
    """Files of the application to compare with those of the release."""


class ReleaseNotes(Notes):
    """What a release changes for applications."""

    version: VersionText
    date: date
    upgrade_from: VersionText | None = None
    """The oldest release that can be upgraded directly; None for any."""
    migrations: tuple[MigrationPath, ...] = ()
    """Migrations of the toolkit's tables, in the order in which they run."""
    renamed: tuple[Renamed, ...] = ()
    removed: tuple[Removed, ...] = ()
    settings: tuple[Setting, ...] = ()
    steps: tuple[Step, ...] = ()


class AllNotes(Notes):
    """The notes on all releases, and what a release consists of."""

    format: int
    packages: tuple[PackageName, ...]
    optional: tuple[PackagePath, ...]
    release: tuple[ReleaseNotes, ...]
    """Newest first."""


@dataclass(frozen=True)
class Release:
    """A release in a directory."""

    directory: Path
    version: str
    notes: AllNotes

    def since(self, version: str) -> list[ReleaseNotes]:
        """Return the notes on the releases after `version`, up to this one, oldest first."""
        return [
            notes
            for notes in sorted(self.notes.release, key=lambda notes: key(notes.version))
            if key(version) < key(notes.version) <= key(self.version)
        ]


def key(version: str) -> tuple[int, ...]:
    """Return a sort key for a version such as `0.2.0`."""
    return tuple(int(part) for part in version.split("."))


def read_release(directory: Path, source: str) -> Release:
    """Return the release in a directory.

    Args:
        directory: the root of the release.
        source: what to call it in errors.

    Raises:
        UpgradeError: the directory does not contain a release of this project, or one for a newer
            `make upgrade` or another Python.
    """
    toolkit, rehearsal = (
        read_project(directory, package, name, source) for package, name in DISTRIBUTIONS.items()
    )
    version = toolkit.version
    if rehearsal.version != version:
        raise not_a_release(
            source, f"quart_upsun is {version}, but rehearsal is {rehearsal.version}"
        )
    content = read_toml(directory, NOTES, source)
    if content.get("format") != FORMAT:
        raise UpgradeError(
            f"Release {version} has notes in a format that this `make upgrade` cannot read. Upgrade"
            " to an earlier release first, with RELEASE=…"
        )
    try:
        notes = AllNotes.model_validate(content)
    except ValidationError as error:
        raise not_a_release(source, f"{NOTES}: {first_error(error)}") from None
    if version not in [each.version for each in notes.release]:
        raise not_a_release(source, f"{NOTES} has no notes on {version}")
    for package in notes.packages:
        if not (directory / package).is_dir():
            raise not_a_release(source, f"the package {package} is missing")
    for path in migrations_of(notes.release):
        if not (directory / path).is_file():
            raise not_a_release(source, f"the migration {path} is missing")
    if not SpecifierSet(toolkit.requires_python).contains(platform.python_version()):
        raise UpgradeError(
            f"Release {version} requires Python {toolkit.requires_python}, but this is"
            f" {platform.python_version()}. Choose another interpreter: `make upgrade PYTHON=…`"
        )
    return Release(directory, version, notes)


def migrations_of(notes: Iterable[ReleaseNotes]) -> list[str]:
    """Return the paths of the migrations, in the order of the notes."""
    return [path for each in notes for path in each.migrations]


def read_project(directory: Path, package: str, name: str, source: str) -> Project:
    """Return the project of a package; raise UpgradeError if it is not the one of this name."""
    path = f"{package}/pyproject.toml"
    try:
        project = Project.model_validate(read_toml(directory, path, source).get("project"))
    except ValidationError as error:
        raise not_a_release(source, f"{path}: {first_error(error)}") from None
    if project.name != name:
        raise not_a_release(source, f"the name in {path} is not {name}")
    return project


def first_error(error: ValidationError) -> str:
    """Return the first error of a file: where, and what."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")


def read_toml(directory: Path, path: str, source: str) -> dict[str, Any]:
    """Return the content of a file of a release; raise UpgradeError if it cannot be read."""
    try:
        return tomllib.loads((directory / path).read_text("utf-8"))
    except OSError:
        raise not_a_release(source, f"it has no {path}") from None
    except ValueError:  # not TOML, or not UTF-8
        raise not_a_release(source, f"{path} is not valid TOML") from None


def not_a_release(source: str, reason: str) -> UpgradeError:
    return UpgradeError(
        f"{source} is not a release of quart-upsun: {reason}. Set FROM to a checkout, an archive or"
        " a Git remote of quart-upsun."
    )


def require_upgradable(current: str, release: Release) -> None:
    """Check that an application can go from one release to another.

    Args:
        current: the version that the application uses.
        release: the release to upgrade to.

    Raises:
        UpgradeError: it is not newer, or another release has to come first.
    """
    if key(current) == key(release.version):
        raise UpgradeError(
            f"The application already uses release {current}. Choose a newer one with RELEASE=…"
        )
    if key(current) > key(release.version):
        raise UpgradeError(
            f"The application uses release {current}, and {release.version} is older. To go back,"
            " revert the commit of the upgrade with `git revert`."
        )
    possible = [
        notes.version
        for notes in release.since(current)
        if all(
            key(current) >= key(between.upgrade_from or current)
            for between in release.since(current)
            if key(between.version) <= key(notes.version)
        )
    ]
    if release.version not in possible:
        first = f" RELEASE={possible[-1]}" if possible else " an earlier RELEASE"
        raise UpgradeError(
            f"Release {release.version} cannot be reached directly from {current}. Upgrade with"
            f"{first} first."
        )
