"""The previous release on the new schema, with compatible and incompatible migrations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rehearsal.tests.sample import commit, git

HERE = Path(__file__).resolve().parents[2]  # where the package can be imported from
VERSIONS = "database/versions"
NULLABLE = "ALTER TABLE users ADD COLUMN nickname text"
RENAMED = "ALTER TABLE users RENAME COLUMN email TO address"

PROJECT = """\
[tool.rehearsal.compatibility]
command = "python -m pytest -q -p no:cacheprovider -p no:randomly"
migrations = "database/versions"
configuration = "database/settings.ini"
variable = "OTHER_MIGRATIONS"
built = ["web/built.json"]
guide = "HOWTO.md"
"""
APPLICATION = """\
from pathlib import Path

BUILT = (Path(__file__).parent / "web" / "built.json").read_text()


def emails(connection):
    return [email for email, in connection.execute("SELECT email FROM users")]
"""
CONFTEST = """\
import os
import runpy
import sqlite3
from pathlib import Path

import pytest


@pytest.fixture
def connection():
    settings = os.environ.get("OTHER_MIGRATIONS") or "database/settings.ini"
    connection = sqlite3.connect(":memory:")
    for path in sorted((Path(settings).parent / "versions").glob("*.py")):
        connection.execute(runpy.run_path(str(path))["STATEMENT"])
    yield connection
    connection.close()
"""
TESTS = """\
import application


def test_users_have_emails(connection):
    assert application.emails(connection) == []
"""
FIRST = "CREATE TABLE users (id integer, email text)"


def migration(statement: str, revision: str, follows: str | None) -> dict[str, str]:
    text = f"revision: str = {revision!r}\ndown_revision = {follows!r}\nSTATEMENT = {statement!r}\n"
    return {f"{VERSIONS}/{revision}.py": text}


FILES = {
    "pyproject.toml": PROJECT,
    "application.py": APPLICATION,
    "tests/conftest.py": CONFTEST,
    "tests/test_application.py": TESTS,
    "database/settings.ini": "",
    ".gitignore": "/web/\n__pycache__/\n",
    **migration(FIRST, "a_first", None),
}


def compatibility(
    repository: Path, *arguments: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rehearsal.compatibility", *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(HERE), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one release."""
    directory = tmp_path / "repository"
    directory.mkdir()
    commit(directory, FILES, "first release")
    (directory / "web").mkdir()
    (directory / "web" / "built.json").write_text("{}")
    return directory


def save(repository: Path, message: str, files: dict[str, str]) -> str:
    """Write and commit files; return the commit."""
    for name, text in files.items():
        (repository / name).write_text(text)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "-m", message)
    return git(repository, "rev-parse", "HEAD")


def test_nullable_column_is_compatible(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    save(repository, "second release", migration(NULLABLE, "b_second", "a_first"))
    # A later commit has no migration, and the shell has misleading variables.
    save(repository, "documentation", {"README.md": "Changed.\n"})
    result = compatibility(
        repository,
        PYTEST_ADDOPTS="--no-such-option",
        PYTHONPATH=f"{HERE}{os.pathsep}{repository}",
        DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing",
        OTHER_MIGRATIONS="/nowhere/settings.ini",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"the tests of {first[:9]}" in result.stdout
    assert "1 passed" in result.stdout
    assert "works on the schema of this tree" in result.stdout


def test_renamed_column_is_incompatible(repository: Path) -> None:
    """The migration does not have to be committed."""
    for name, text in migration(RENAMED, "b_second", "a_first").items():
        (repository / name).write_text(text)
    # The new code uses the new name, the previous release does not.
    (repository / "application.py").write_text(
        APPLICATION.replace("SELECT email", "SELECT address")
    )
    result = compatibility(repository)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAILED tests/test_application.py" in result.stdout
    assert "HEAD" in result.stderr
    assert "does not work on the schema of this tree" in result.stderr
    assert "HOWTO.md" in result.stderr


def test_squashed_migrations_are_not_compared(repository: Path) -> None:
    """Neither before nor after the commit."""
    save(repository, "second release", migration(NULLABLE, "b_second", "a_first"))
    for name in ("a_first", "b_second"):
        git(repository, "rm", "--quiet", f"{VERSIONS}/{name}.py")
    files = migration(FIRST.replace("email", "address"), "c_anew", None)
    files |= migration(NULLABLE, "d_more", "c_anew")
    for name, text in files.items():
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text(text)
    git(repository, "add", "--all")  # Git sees two renamed files
    for commits in (False, True):
        if commits:
            save(repository, "all in one", {})
        result = compatibility(repository)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "nothing to compare" in result.stdout
        assert "Running the tests of" not in result.stdout
    # The next migration is compared again.
    save(repository, "a column", migration(RENAMED.replace("email", "id"), "e_next", "d_more"))
    result = compatibility(repository)
    assert "Running the tests of" in result.stdout, result.stdout + result.stderr


def test_single_migration_has_no_previous_release(repository: Path) -> None:
    result = compatibility(repository)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "only one migration" in result.stdout


def test_release_that_cannot_use_another_schema_is_unknown(repository: Path) -> None:
    conftest = CONFTEST.replace("OTHER_MIGRATIONS", "SOMETHING_ELSE")
    old = save(repository, "an old release", {"tests/conftest.py": conftest})
    save(repository, "a new release", migration(NULLABLE, "b_second", "a_first"))
    for arguments in ([], ["--from", old]):
        result = compatibility(repository, *arguments)
        assert result.returncode == 2
        assert "OTHER_MIGRATIONS" in result.stderr


def test_command_without_tests_is_unknown(repository: Path) -> None:
    save(repository, "second release", migration(NULLABLE, "b_second", "a_first"))
    result = compatibility(repository, "--command", "python -m pytest -q -k no_such_test")
    assert result.returncode == 2
    assert "exit code 5" in result.stderr
    result = compatibility(repository, "--command", "no-such-program")
    assert result.returncode == 2
    assert "no-such-program" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("guide", "manual", "tool.rehearsal.compatibility.manual"),
        ("OTHER_MIGRATIONS", "A=B", "tool.rehearsal.compatibility.variable"),
        ("built = [", "built = 3 # [", "tool.rehearsal.compatibility.built"),
    ],
)
def test_invalid_section_is_an_error(repository: Path, old: str, new: str, words: str) -> None:
    save(repository, "wrong", {"pyproject.toml": PROJECT.replace(old, new)})
    result = compatibility(repository)
    assert result.returncode == 2
    assert words in result.stderr


def test_missing_history_is_an_error(repository: Path) -> None:
    for name, text in migration(NULLABLE, "b_second", "a_first").items():
        (repository / name).write_text(text)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--amend", "-m", "everything at once")
    result = compatibility(repository)
    assert result.returncode == 2
    assert "--from" in result.stderr
    assert compatibility(repository, "--from", "no-such-commit").returncode == 2


def test_merge_is_compared_with_the_deployed_release(repository: Path) -> None:
    """The previous release is on main, although the branch has commits before its migration."""
    git(repository, "switch", "--quiet", "--create", "branch")
    save(repository, "before the migration, never deployed", {"branch.txt": "the branch\n"})
    save(repository, "the migration", migration(NULLABLE, "b_second", "a_first"))
    git(repository, "switch", "--quiet", "main")
    deployed = save(repository, "deployed in the meantime", {"main.txt": "main\n"})
    git(repository, "merge", "--quiet", "--no-ff", "-m", "merge", "branch")
    result = compatibility(repository, "--command", "python -c pass")
    assert f"the tests of {deployed[:9]}" in result.stdout, result.stderr
