"""Migrations on a real PostgreSQL: complete, reversible, one at a time, and patient."""

import asyncio
import logging
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import make_url

from app.settings import ROOT
from tests.migrations.recipes import copy_with_second_migration, head

INI = ROOT / "alembic.ini"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, empty_database: str) -> Config:
    """Alembic's configuration, pointed at a database of this test's own."""
    monkeypatch.setenv("DATABASE_URL", empty_database)
    return Config(INI)


def alembic(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a person or a deploy hook does."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def revision(url: str) -> str | None:
    connection = await asyncpg.connect(url)
    try:
        found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return found
    finally:
        await connection.close()


async def tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {row["tablename"] for row in rows}
    finally:
        await connection.close()


async def test_up_down_and_up_again_without_drift(config: Config, empty_database: str) -> None:
    """Called from inside the running loop, as a test or an application would."""
    command.upgrade(config, "head")
    assert await revision(empty_database) == head()
    command.check(config)
    command.downgrade(config, "base")
    assert await tables(empty_database) == {"alembic_version"}
    command.upgrade(config, "head")
    command.check(config)


async def test_drift_is_noticed(config: Config, empty_database: str) -> None:
    command.upgrade(config, "head")
    connection = await asyncpg.connect(empty_database)
    await connection.execute("DROP INDEX uq_users_email")
    await connection.close()
    with pytest.raises(CommandError):
        command.check(config)


def test_the_command_line_works_and_says_each_step(empty_database: str) -> None:
    result = alembic(empty_database, "upgrade", "head")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Running upgrade") == len(
        list(ScriptDirectory.from_config(Config(INI)).walk_revisions())
    )
    again = alembic(empty_database, "upgrade", "head")
    assert again.returncode == 0
    assert "Running upgrade" not in again.stderr


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "pgsql", "postgresql+asyncpg"])
def test_every_form_of_the_address_works(empty_database: str, scheme: str) -> None:
    url = empty_database.replace("postgresql://", f"{scheme}://", 1)
    result = alembic(url, "current")
    assert result.returncode == 0, result.stderr


async def test_a_percent_sign_in_the_password(server_url: str, empty_database: str) -> None:
    """Alembic's own template puts the address through configparser, which trips over it."""
    role = f"percent_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(server_url)
    await connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'a%b%%c@/'")
    url = make_url(empty_database).set(username=role, password="a%b%%c@/")
    result = alembic(url.render_as_string(hide_password=False), "upgrade", "head")
    assert result.returncode == 0, result.stderr
    assert "a%b" not in result.stderr
    owner = await asyncpg.connect(empty_database)
    await owner.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER")
    await owner.close()
    await connection.execute(f"DROP ROLE {role}")
    await connection.close()


async def test_eight_at_once_all_succeed(empty_database: str) -> None:
    results = await asyncio.gather(
        *(asyncio.to_thread(alembic, empty_database, "upgrade", "head") for _ in range(8))
    )
    assert [result.returncode for result in results] == [0] * 8, results
    migrated = [result for result in results if "Running upgrade" in result.stderr]
    assert len(migrated) == 1
    assert await revision(empty_database) == head()


async def test_a_blocked_table_ends_the_migration_while_readers_go_on(
    database_url: str, tmp_path: Path
) -> None:
    tree = copy_with_second_migration(tmp_path / "tree")
    holder = await asyncpg.connect(database_url)
    reader = await asyncpg.connect(database_url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.fetch("SELECT * FROM users")  # a long report: blocks the ALTER, not readers

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alembic", "upgrade", "head"),
        cwd=tree,
        env={**os.environ, "DATABASE_URL": database_url},
        stderr=asyncio.subprocess.PIPE,
    )
    longest = 0.0
    waiting = asyncio.create_task(process.communicate())
    started = time.monotonic()
    while not waiting.done():
        before = time.monotonic()
        await reader.fetch("SELECT count(*) FROM users")
        longest = max(longest, time.monotonic() - before)
        await asyncio.sleep(0.01)
    _, stderr = await waiting
    assert process.returncode != 0
    assert b"stayed locked" in stderr
    assert b"Traceback" not in stderr, stderr.decode()
    assert time.monotonic() - started < 30
    assert longest < 5, "a reader waited longer than one attempt's lock time-out allows"
    assert await revision(database_url) == head()

    await transaction.rollback()
    await holder.close()
    await reader.close()
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=tree,
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert await revision(database_url) == "second"


async def test_loggers_of_the_application_stay_alive(config: Config) -> None:
    logger = logging.getLogger("app.something")
    handlers = list(logging.getLogger().handlers)
    command.upgrade(config, "head")
    assert not logger.disabled
    assert logging.getLogger().handlers == handlers


def test_sql_can_be_printed_without_a_database() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    result = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head", "--sql"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "CREATE TABLE users" in result.stdout


def test_a_missing_address_is_one_sentence() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    result = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert result.stderr.strip() == "DATABASE_URL is not set."


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (
            "sslmode=require&channel_binding=require",
            "DATABASE_URL has a channel_binding other than disable or prefer, which is not"
            " supported: to authenticate the server use sslmode=verify-full&sslrootcert=system"
            " instead.",
        ),
        (
            "keepalives_idle=30",
            "DATABASE_URL has the parameter keepalives_idle, which is not supported.",
        ),
    ],
)
def test_a_parameter_that_is_not_supported_is_one_sentence(parameters: str, sentence: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": f"postgresql://u:hunter2@127.0.0.1:1/d?{parameters}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.strip() == sentence


async def test_parameters_of_the_address_hold_for_migrations(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(empty_database)
    await connection.execute("CREATE SCHEMA of_ones_own")
    joined = "&" if "?" in empty_database else "?"
    monkeypatch.setenv(
        "DATABASE_URL",
        f"{empty_database}{joined}application_name=mine&connect_timeout=9&channel_binding=prefer"
        "&options=-csearch_path%3Dof_ones_own",
    )
    await asyncio.to_thread(command.upgrade, Config(ROOT / "alembic.ini"), "head")
    schema = "SELECT schemaname FROM pg_tables WHERE tablename = 'users'"
    assert await connection.fetchval(schema) == "of_ones_own"
    await connection.close()


def test_migrations_import_nothing_from_the_application() -> None:
    """They must still run when the code they were written with is gone."""
    for path in (ROOT / "alembic" / "versions").glob("*.py"):
        text = path.read_text()
        assert "import app" not in text, path
        assert "from app" not in text, path
