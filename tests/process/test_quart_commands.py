"""The commands of Flask's extensions as `quart` commands, and `.env`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from app.settings import ROOT
from quart_upsun.database.url import parse_database_url
from tests.migrations.recipes import head
from tests.repository import checkout

BIN = Path(sys.executable).parent


def run(
    *command: str, directory: Path = ROOT, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of the virtual environment with only the given variables."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=directory,
        env={
            "PATH": os.environ["PATH"],
            "QUART_SKIP_DOTENV": "1",
            "DATABASE_ENVIRONMENT": "tests",
            **variables,
        },
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return checkout(tmp_path / "clone")


def test_db_upgrades_and_downgrades(empty_database: str) -> None:
    def db(*words: str) -> str:
        result = run("quart", "db", *words, DATABASE_URL=empty_database)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert db("current") == ""
    db("upgrade")
    assert db("current") == f"{head()} (head)\n"
    assert f"{head()} (head) (current)" in db("history", "--indicate-current").splitlines()[0]
    db("downgrade")
    below = db("current").strip()
    assert re.fullmatch(r"[0-9a-f]{12}", below)
    assert below != head()
    db("upgrade", head())
    assert "DROP TABLE" in db("downgrade", f"{head()}:{below}", "--sql")
    db("downgrade", "base")
    assert db("current") == ""


async def test_db_downgrade_fails_for_an_unknown_revision(database_url: str) -> None:
    """An upgrade of a database that is newer than the code does nothing, and is no error."""
    engine = create_async_engine(parse_database_url(database_url))
    async with engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'c0ffee'")
    await engine.dispose()
    assert run("quart", "db", "upgrade", DATABASE_URL=database_url).returncode == 0
    result = run("quart", "db", "downgrade", DATABASE_URL=database_url)
    assert result.returncode == 1
    assert result.stderr.endswith("Error: Can't locate revision identified by 'c0ffee'.\n")


def test_db_works_in_any_directory(database_url: str, tmp_path: Path) -> None:
    words = ("quart", "--app", str(ROOT / "app"), "db", "current")
    result = run(*words, directory=tmp_path, DATABASE_URL=database_url)
    assert result.stdout == f"{head()} (head)\n"


def test_db_migrate_writes_a_migration(clone: Path, database_url: str) -> None:
    models = clone / "app" / "public" / "models.py"
    models.write_text(
        '"""A model."""\n\nfrom typing import ClassVar\n\n'
        "from sqlalchemy.orm import Mapped, mapped_column\n\n"
        "from quart_upsun.database import Base\n\n\n"
        'class Note(Base):\n    """A note."""\n\n'
        '    __tablename__ = "notes"\n    __sanitize__: ClassVar = "emptied"\n\n'
        "    id: Mapped[int] = mapped_column(primary_key=True)\n"
    )
    words = ("quart", "db", "migrate", "-m", "add notes", "--rev-id", "c0ffee")
    result = run(*words, directory=clone, DATABASE_URL=database_url)
    assert result.returncode == 0, result.stderr
    [written] = (clone / "alembic" / "versions").glob("*_c0ffee_add_notes.py")
    assert re.search(r"op\.create_table\(\s*\"notes\"", written.read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("upgrade", "nothing"), "Can't locate revision identified by 'nothing'."),
        (("downgrade",), "Relative revision -1 didn't produce 1 migrations."),
        (("migrate", "-m", "x"), "Target database is not up to date."),
        (("history", "-r", "x"), "History range requires [start]:[end], [start]:, or :[end]."),
    ],
)
def test_db_errors_are_one_sentence(
    empty_database: str, words: tuple[str, ...], message: str
) -> None:
    result = run("quart", "db", *words, DATABASE_URL=empty_database)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize("words", [("db", "upgrade"), ("db", "current"), ("shell",)])
def test_commands_name_how_to_use_the_database_of_this_checkout(words: tuple[str, ...]) -> None:
    result = run("quart", *words)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("DATABASE_URL is not set. ")
    assert line.endswith(f" -m development quart {' '.join(words)}")


def test_db_history_and_sql_need_no_database() -> None:
    assert f"{head()} (head)" in run("quart", "db", "history").stdout
    result = run("quart", "db", "upgrade", "--sql")
    assert result.returncode == 0
    assert "CREATE TABLE users" in result.stdout


SHELL = """
print("names:", app.name, User.__name__, Job.__name__)
session.add(User(username="ada", email="ada@example.com", password_hash="x"))
await session.flush()
print("in transaction:", await session.scalar(select(func.count(User.id))))
from quart_upsun.database import read
async with read() as other:
    print("outside:", await other.scalar(select(func.count(User.id))))

import quart
print("context:", quart.current_app.name)
1 / 0
print("after error")
await session.commit()
session.add(User(username="bob", email="bob@example.com", password_hash="x"))
await session.flush()
"""


async def test_shell_awaits_and_commits_only_on_request(database_url: str) -> None:
    result = run("quart", "shell", DATABASE_URL=database_url, stdin=SHELL)
    assert result.returncode == 0, result.stderr
    output = result.stdout
    assert "names: app User Job\n" in output
    assert "in transaction: 1\n" in output
    assert "outside: 0\n" in output
    assert "context: app\n" in output
    assert "after error\n" in output
    assert "ZeroDivisionError" in result.stderr
    assert "never awaited" not in result.stderr
    assert "During handling" not in result.stderr
    engine = create_async_engine(parse_database_url(database_url))
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT username FROM users")
        assert found.scalars().all() == ["ada"]
    await engine.dispose()


def test_shell_exits_with_the_given_code(database_url: str) -> None:
    result = run("quart", "shell", DATABASE_URL=database_url, stdin="raise SystemExit(3)\n")
    assert result.returncode == 3


def test_routes_list_policies_with_the_options_of_quart() -> None:
    def table(*words: str) -> list[list[str]]:
        result = run("quart", "routes", *words)
        assert result.returncode == 0, result.stderr
        return [re.split(r" {2,}", line) for line in result.stdout.splitlines()]

    headers, _, *rows = table()
    assert headers == ["Endpoint", "Methods", "Rule", "Login", "Cache", "Limit"]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert ["user.check_login", "POST", "/login/", "public", "private, no-store"] in [
        row[:5] for row in rows
    ]
    rules = [row[2] for row in table("--sort", "rule")[2:]]
    assert rules == sorted(rules)
    assert ["public.home", "GET, HEAD, OPTIONS"] in [
        row[:2] for row in table("--sort", "match", "--all-methods")
    ]
    unknown = run("quart", "routes", "--sort", "nothing")
    assert unknown.returncode == 2
    assert "Traceback" not in unknown.stderr


def test_test_and_lint_run_make() -> None:
    arguments = ("tests/unit/test_identity.py", "-k", "not $nothing or 'a b'", "--collect-only")
    # Only shows what make would run.
    result = run("quart", "test", *arguments, MAKEFLAGS="--dry-run")
    assert result.returncode == 0, result.stderr
    assert """-k 'not $nothing or '"'"'a b'"'"'' --collect-only""" in result.stdout
    result = run("quart", "lint", MAKEFLAGS="--dry-run")
    assert "-m mypy" in result.stdout


def test_test_and_lint_refuse_in_a_deployed_release() -> None:
    for command in ("test", "lint"):
        result = run(
            *("quart", command),
            PLATFORM_APPLICATION_NAME="app",
            PLATFORM_ENVIRONMENT="main-bvxea6i",
            SECRET_KEY="0123456789abcdefghijklmnopqrstuvwxyz",
        )
        assert result.returncode == 1
        assert result.stderr.startswith("Error: The packages for tests are not deployed.")


ENTRY_POINTS = [
    ("python", "-m", "app.server"),
    ("python", "-m", "app.worker"),
    ("python", "-m", "development", "true"),
    ("alembic", "current"),
    ("quart", "db", "current"),
    ("quart", "run"),
    ("hypercorn", "app:create_app()"),
]


@pytest.fixture(scope="module")
def configured_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with an invalid variable in `.env`."""
    clone = checkout(tmp_path_factory.mktemp("configured") / "clone")
    (clone / ".env").write_text("DATABASE_URL=mysql://nowhere/none\n")
    return clone


@pytest.mark.parametrize("command", ENTRY_POINTS, ids=" ".join)
def test_every_entry_point_reads_the_env_file(
    configured_clone: Path, command: tuple[str, ...]
) -> None:
    result = run(*command, directory=configured_clone, QUART_SKIP_DOTENV="")
    assert result.returncode != 0 or command[0] == "hypercorn"  # whose exit code is always 0
    message = "DATABASE_URL must start with postgresql://, got mysql://."
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_variables_take_precedence_over_the_env_file(
    configured_clone: Path, database_url: str
) -> None:
    def current(**variables: str) -> subprocess.CompletedProcess[str]:
        return run("alembic", "current", directory=configured_clone, **variables)

    result = current(QUART_SKIP_DOTENV="", DATABASE_URL=database_url)
    assert result.returncode == 0, result.stderr
    assert "DATABASE_URL is not set." in current(QUART_SKIP_DOTENV="1").stderr
    # On Upsun, the file is not read.
    upsun = {"PLATFORM_APPLICATION_NAME": "app", "PLATFORM_ENVIRONMENT": "main-bvxea6i"}
    assert "DATABASE_URL is not set." in current(QUART_SKIP_DOTENV="", **upsun).stderr


def test_unreadable_env_file_is_an_error(clone: Path) -> None:
    (clone / ".env").write_bytes(b"SITE_NAME=\xff\n")
    result = run("alembic", "current", directory=clone, QUART_SKIP_DOTENV="")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.endswith(".env: it is not valid UTF-8.")


def test_env_file_is_ignored_by_git() -> None:
    assert subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT).returncode == 0
