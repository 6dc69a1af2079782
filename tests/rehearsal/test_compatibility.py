"""Old code on the new schema: this repository's releases, and made-up ones that do it wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import ROOT
from tests.conftest import quick_place
from tests.migrations.recipes import HEADER, head
from tests.rehearsal.sample import git
from tests.repository import checkout

VERSIONS = Path("alembic") / "versions"
# Enough to add, find and list users; all features would take longer than the other tests together.
QUICK = "python -m pytest -q tests/features/test_accounts.py -k 'whole_journey or taken_names'"
NULLABLE = 'op.add_column("users", sa.Column("nickname", sa.String(40)))'
RENAMED = 'op.alter_column("users", "email", new_column_name="address")'

# Each runs a test suite of its own.
pytestmark = pytest.mark.xdist_group("builds")


def compatibility(
    repository: Path, *arguments: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rehearsal.compatibility", *arguments],
        cwd=repository,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


def commit(repository: Path, message: str) -> str:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "-m", message)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose first release is this tree."""
    directory = checkout(tmp_path / "repository")
    git(directory, "init", "--quiet", "--initial-branch=main")
    commit(directory, "first release")
    (directory / "app" / "manifest.json").symlink_to(ROOT / "app" / "manifest.json")
    return directory


def add_migration(repository: Path, statement: str, revision: str = "second") -> None:
    header = HEADER.format(name=revision, revision=revision, down_revision=head())
    (repository / VERSIONS / f"{revision}.py").write_text(
        f"{header}def upgrade():\n    {statement}\n\n\ndef downgrade():\n    pass\n"
    )


def test_this_repository() -> None:
    """The release before this one works on its schema, if it has one."""
    # Its suite makes hundreds of databases, as this one does.
    result = compatibility(ROOT, TMPDIR=quick_place())
    assert result.returncode == 0, result.stdout + result.stderr


def test_migrations_that_begin_anew_have_no_release_before(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    for number, path in enumerate((repository / VERSIONS).glob("*.py")):
        path.rename(path.with_name(f"anew_{number}.py"))
    commit(repository, "other migrations")
    result = compatibility(repository, "--command", "exit 1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"No migration of {first[:9]} is in this tree" in result.stdout


def test_a_nullable_column_suits_the_release_before(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    add_migration(repository, NULLABLE)
    commit(repository, "second release")
    # A commit without a migration comes after it; and a shell that points everything elsewhere.
    (repository / "README.md").write_text("Changed.\n")
    commit(repository, "a word")
    result = compatibility(
        repository,
        *("--command", QUICK),
        PYTEST_ADDOPTS="--no-such-option",
        PYTHONPATH=str(repository),
        DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"The tests of {first[:9]}" in result.stdout
    assert " passed" in result.stdout
    assert "works on the schema of this tree" in result.stdout


def test_a_renamed_column_is_caught(repository: Path) -> None:
    """Not committed yet, so that it can be seen before."""
    add_migration(repository, RENAMED)
    # The new code knows the new name: only the release before is left out.
    models = repository / "app" / "user" / "models.py"
    old = "\n    email: Mapped[str | None] = mapped_column("
    assert old in models.read_text()
    models.write_text(models.read_text().replace(old, f'{old}"address", '))
    result = compatibility(repository, "--command", QUICK)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAILED tests/features/test_accounts.py" in result.stdout
    assert "HEAD" in result.stderr
    assert "does not work on the schema of this tree" in result.stderr
    assert "docs/migrations.md" in result.stderr


def test_a_release_that_cannot_be_told_is_not_taken_for_one_that_works(repository: Path) -> None:
    conftest = repository / "tests" / "conftest.py"
    conftest.write_text(conftest.read_text().replace("TEST_MIGRATIONS", "SOMETHING_ELSE"))
    old = commit(repository, "an old release")
    add_migration(repository, NULLABLE)
    commit(repository, "a new release")
    for arguments in ([], ["--from", old]):
        result = compatibility(repository, *arguments)
        assert result.returncode == 2
        assert "TEST_MIGRATIONS" in result.stderr


def test_a_command_that_tests_nothing_proves_nothing(repository: Path) -> None:
    add_migration(repository, NULLABLE)
    result = compatibility(
        repository, "--command", "python -m pytest -q tests/unit/test_http.py -k no_such_test"
    )
    assert result.returncode == 2
    assert "exit code 5" in result.stderr
    result = compatibility(repository, "--command", "no-such-program")
    assert result.returncode == 2
    assert "no-such-program cannot be run" in result.stderr


def test_a_history_that_ends_too_early_is_said(repository: Path) -> None:
    add_migration(repository, NULLABLE)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--amend", "-m", "everything at once")
    result = compatibility(repository)
    assert result.returncode == 2
    assert "--from" in result.stderr
    assert compatibility(repository, "--from", "no-such-commit").returncode == 2


def test_a_merge_is_compared_with_what_was_deployed(repository: Path) -> None:
    """The release before is main's, though the branch has commits before its migration."""
    git(repository, "switch", "--quiet", "--create", "branch")
    (repository / "branch.txt").write_text("the branch\n")
    commit(repository, "before the migration, never deployed")
    add_migration(repository, NULLABLE)
    commit(repository, "the migration")
    git(repository, "switch", "--quiet", "main")
    (repository / "main.txt").write_text("meanwhile\n")
    deployed = commit(repository, "deployed meanwhile")
    git(repository, "merge", "--quiet", "--no-ff", "-m", "merge", "branch")
    result = compatibility(repository, "--command", "python -c pass")
    assert f"The tests of {deployed[:9]}" in result.stdout, result.stderr
