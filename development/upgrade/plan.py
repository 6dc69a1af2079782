"""What an upgrade does to an application, computed before anything is changed."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from development.upgrade import application as packages
from development.upgrade import migrations, requirements
from development.upgrade.application import Application, PackageChange
from development.upgrade.migrations import Migration
from development.upgrade.places import Files, Place
from development.upgrade.release import (
    Release,
    Renamed,
    Step,
    UpgradeError,
    key,
    migrations_of,
)
from development.upgrade.requirements import RequirementChanges

RECORD = re.compile(r'^(\[tool\.quart-upsun\]\n(?:(?!\[).*\n)*?release *= *)"[^"]*"', re.MULTILINE)


@dataclass(frozen=True)
class Advice:
    """Something in the application that needs a change by hand."""

    text: str
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The changes of an upgrade."""

    application: Application
    release: Release
    packages: list[PackageChange]
    left_out: list[str]
    """Parts of the release that the application does not have."""
    requirements: RequirementChanges
    pyproject: str
    """The new text of pyproject.toml."""
    migrations: list[Migration]
    advice: list[Advice]

    @property
    def kept_release(self) -> str:
        """The directory that keeps the release's files for comparison; Git ignores it."""
        return f"build/upgrade/{self.release.version}"

    def apply(self) -> None:
        """Change the working tree."""
        root = self.application.root
        for change in self.packages:
            packages.replace_package(self.application, self.release, change.package, self.left_out)
        (root / "pyproject.toml").write_text(self.pyproject, "utf-8")
        for migration in self.migrations:
            (root / migration.path).write_text(migration.text, "utf-8")
        kept = root / self.kept_release
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.release.directory, kept, ignore=shutil.ignore_patterns(".git"))


def make_plan(application: Application, release: Release) -> Plan:
    """Compute the changes; change nothing.

    Raises:
        UpgradeError: the team has changed the packages, or the migrations are unreadable.
    """
    replaced = packages.packages_to_replace(application, release)
    merged = requirements.merge(application.root, release.directory, replaced)
    pyproject, count = RECORD.subn(rf'\g<1>"{release.version}"', merged.pyproject)
    if count != 1:
        raise UpgradeError(
            "pyproject.toml must have the table [tool.quart-upsun] with a line such as"
            f' release = "{application.release}".'
        )
    packages.require_unchanged(application, release)
    left_out = packages.missing_parts(application, release)
    notes = release.since(application.release)
    return Plan(
        application=application,
        release=release,
        packages=[
            packages.compare_package(application, release, name, left_out) for name in replaced
        ],
        left_out=[
            name
            for name in left_out
            if name not in replaced and (release.directory / name).exists()
        ],
        requirements=merged,
        pyproject=pyproject,
        migrations=migrations.plan(application.root, release.directory, migrations_of(notes)),
        advice=list(advice(application, release)),
    )


def advice(application: Application, release: Release) -> Iterator[Advice]:
    """Yield what the notes say, with the places in the application.

    Notes on names and texts that the application does not use are left out.
    """
    files = Files(application.root, release.notes.packages)
    since = release.since(application.release)
    for renamed in renamed_names(application, release):
        ends = key(renamed.removed_in) <= key(release.version)
        state = "no longer exists" if ends else f"is deprecated until {renamed.removed_in}"
        if places := files.uses(renamed.old):
            yield Advice(f"{renamed.old} {state}; use {renamed.new}.", tuple(places))
    for removed in (each for notes in since for each in notes.removed):
        if places := files.uses(removed.name):
            yield Advice(f"{removed.name} no longer exists. {removed.instead}", tuple(places))
    for setting in (each for notes in since for each in notes.settings):
        names = rf"\b({setting.old}|{setting.old.lower()})\b"
        text = f"is now {setting.new}" if setting.new else "is no longer used"
        yield Advice(
            f"The variable {setting.old} {text}, also on Upsun (`upsun variable:list`)."
            f" {setting.note}".rstrip(),
            tuple(files.contains(names)),
        )
    for step in (each for notes in since for each in notes.steps):
        yield from step_advice(step, files, release)
    for name in files.unreadable:
        yield Advice(f"{name} is not valid Python, so it was not searched.")


def renamed_names(application: Application, release: Release) -> list[Renamed]:
    """Return the names that were renamed since the application's release, or end in this one.

    An earlier release may have announced the end of a name.
    """
    return [
        each
        for notes in reversed(release.notes.release)
        if key(notes.version) <= key(release.version)
        for each in notes.renamed
        if key(notes.version) > key(application.release)
        or key(each.removed_in) > key(application.release)
    ]


def step_advice(step: Step, files: Files, release: Release) -> Iterator[Advice]:
    """Yield a step, if it has no condition or its condition is met."""
    places = files.contains(re.escape(step.search)) if step.search else []
    compared = [
        f"git diff --no-index {name} build/upgrade/{release.version}/{name}"
        for name in step.files
        if name in files.texts
    ]
    if (step.search and not places) or (step.files and not compared):
        return
    commands = f" Compare: {'; '.join(f'`{each}`' for each in compared)}" if compared else ""
    yield Advice(f"{step.text}{commands}", tuple(places))
