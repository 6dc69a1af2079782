"""The previous release of this repository on the new schema."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import ROOT
from rehearsal.tests.sample import git
from tests.migrations.recipes import HEADER, head
from tests.repository import checkout

VERSIONS = Path("alembic") / "versions"
# Enough to add, find and list users; the tests of all features would take too long.
QUICK = "python -m pytest -q tests/features/test_accounts.py -k 'register_log_in or taken_username'"
NULLABLE = 'op.add_column("users", sa.Column("nickname", sa.String(40)))'
RENAMED = 'op.alter_column("users", "email", new_column_name="address")'


def compatibility(repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rehearsal.compatibility", *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose first release is this tree."""
    directory = checkout(tmp_path / "repository")
    git(directory, "init", "--quiet", "--initial-branch=main")
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "-m", "first release")
    (directory / "app" / "manifest.json").symlink_to(ROOT / "app" / "manifest.json")
    return directory


def add_migration(repository: Path, statement: str) -> None:
    header = HEADER.format(name="second", revision="second", down_revision=head())
    (repository / VERSIONS / "second.py").write_text(
        f"{header}def upgrade():\n    {statement}\n\n\ndef downgrade():\n    pass\n"
    )


@pytest.mark.long
def test_this_repository() -> None:
    """The previous release works on the schema of this tree."""
    result = compatibility(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    results = ("only one migration", "nothing to compare", "works on the schema of this tree")
    assert sum(words in result.stdout for words in results) == 1, result.stdout


def test_nullable_column_is_compatible(repository: Path) -> None:
    add_migration(repository, NULLABLE)
    result = compatibility(repository, "--command", QUICK)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "works on the schema of this tree" in result.stdout


def test_renamed_column_is_incompatible(repository: Path) -> None:
    add_migration(repository, RENAMED)
    # The new code uses the new name, the previous release does not.
    models = repository / "app" / "user" / "models.py"
    old = "\n    email: Mapped[str | None] = mapped_column("
    assert old in models.read_text()
    models.write_text(models.read_text().replace(old, f'{old}"address", '))
    result = compatibility(repository, "--command", QUICK)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAILED tests/features/test_accounts.py" in result.stdout
    assert "does not work on the schema of this tree" in result.stderr
    assert "docs/migrations.md" in result.stderr
