"""The application that is upgraded: which release it uses, and what in the packages has changed."""

import filecmp
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from development.upgrade.release import NOTES, Release, UpgradeError
from development.working_tree import git, read_record, require_clean, require_identity


@dataclass(frozen=True)
class Application:
    """An application that `make start` created."""

    root: Path
    release: str
    """The release of its packages."""
    commit: str
    """The current commit, to which the upgrade can be undone."""


def read_application(root: Path) -> Application:
    """Return the application in a directory.

    Raises:
        UpgradeError: it was not started from a release.
        WorkingTreeError: it has uncommitted changes, or is not a Git repository.
    """
    try:
        record = read_record(root)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UpgradeError(f"pyproject.toml cannot be read: {error}. Correct it first.") from None
    if record is None:
        raise UpgradeError(
            "This application was not started from a release. Run `make start NAME=my-service`"
            " first."
        )
    release = str(record.get("release"))
    if not re.fullmatch(r"\d+\.\d+\.\d+", release):
        raise UpgradeError(
            "pyproject.toml must say which release the application uses, in [tool.quart-upsun]: for"
            ' instance release = "0.1.0".'
        )
    require_identity(root)
    return Application(root, release, require_clean(root))


def require_unchanged(application: Application, release: Release) -> None:
    """Check that the packages are as `make start` or the last upgrade left them.

    That commit is the last one that changed the record in pyproject.toml.

    Raises:
        UpgradeError: a file was changed since. The message names the files.
    """
    root = application.root
    if git(root, "rev-parse", "--is-shallow-repository") == "true":
        raise UpgradeError(
            "This is a shallow clone, so changes in the packages cannot be found. Run"
            " `git fetch --unshallow` first."
        )
    version = application.release.replace(".", r"\.")
    base = git(
        root, "log", "-1", "--format=%H", f'-Grelease *= *"{version}"', "--", "pyproject.toml"
    )
    gone = missing_parts(application, release)
    changed = []
    for line in git(
        root, "diff", "--name-status", "--no-renames", base, "HEAD", "--", *release.notes.packages
    ).splitlines():
        name = line.split("\t")[1]
        if not any(name == part or name.startswith(f"{part}/") for part in gone):
            changed.append(name)
    if changed:
        raise UpgradeError(
            f"An upgrade would discard your changes in {', '.join(changed)}. Move them to app/ and"
            f" run `git checkout {base[:12]} -- {' '.join(changed)}`, commit, and upgrade again."
        )


def missing_parts(application: Application, release: Release) -> list[str]:
    """Return the packages and optional parts that the application does not have."""
    names = (*release.notes.packages, *release.notes.optional)
    return [name for name in names if not (application.root / name).exists()]


def packages_to_replace(application: Application, release: Release) -> list[str]:
    """Return the release's packages without those that the team has deleted."""
    previous = tomllib.loads((application.root / NOTES).read_text("utf-8"))["packages"]
    return [
        name
        for name in release.notes.packages
        if (application.root / name).exists() or name not in previous
    ]


def files_of(directory: Path, left_out: Sequence[str], root: Path) -> set[str]:
    """Return the files in a package, relative to `root`, without the parts that are left out."""
    return {
        name
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        for name in [str(path.relative_to(root))]
        if not any(name.startswith(f"{part}/") for part in left_out)
    }


@dataclass(frozen=True)
class PackageChange:
    """What replacing a package changes: numbers of files."""

    package: str
    changed: int
    added: int
    removed: int


def compare_package(
    application: Application, release: Release, package: str, left_out: Sequence[str]
) -> PackageChange:
    """Compare a package of the application with that of the release."""
    before = files_of(application.root / package, left_out, application.root)
    after = files_of(release.directory / package, left_out, release.directory)
    changed = [
        name
        for name in before & after
        if not filecmp.cmp(application.root / name, release.directory / name, shallow=False)
    ]
    return PackageChange(package, len(changed), len(after - before), len(before - after))


def replace_package(
    application: Application, release: Release, package: str, left_out: Sequence[str]
) -> None:
    """Replace a package by that of the release."""
    target = application.root / package
    if target.exists():
        shutil.rmtree(target)
    for name in sorted(files_of(release.directory / package, left_out, release.directory)):
        path = application.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(release.directory / name, path)
