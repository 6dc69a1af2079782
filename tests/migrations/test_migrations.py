"""Migrations on a real PostgreSQL: complete, reversible, serialized and retried."""

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
from tests.migrations.recipes import alembic, copy_with_second_migration, head

INI = ROOT / "alembic.ini"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, empty_database: str) -> Config:
    """Alembic's configuration for an empty database."""
    monkeypatch.setenv("DATABASE_URL", empty_database)
    return Config(INI)


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


async def test_check_detects_drift(config: Config, empty_database: str) -> None:
    command.upgrade(config, "head")
    connection = await asyncpg.connect(empty_database)
    await connection.execute("DROP INDEX uq_users_email")
    await connection.close()
    with pytest.raises(CommandError):
        command.check(config)


def test_upgrade_logs_each_migration(empty_database: str) -> None:
    result = alembic(empty_database, "upgrade", "head")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Running upgrade") == len(
        list(ScriptDirectory.from_config(Config(INI)).walk_revisions())
    )
    again = alembic(empty_database, "upgrade", "head")
    assert again.returncode == 0
    assert "Running upgrade" not in again.stderr


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "pgsql", "postgresql+asyncpg"])
def test_every_database_url_scheme_works(empty_database: str, scheme: str) -> None:
    url = empty_database.replace("postgresql://", f"{scheme}://", 1)
    result = alembic(url, "current")
    assert result.returncode == 0, result.stderr


async def test_percent_sign_in_the_password_works(server_url: str, empty_database: str) -> None:
    """With Alembic's own template, configparser would interpolate it."""
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


async def test_concurrent_upgrades_all_succeed(empty_database: str) -> None:
    results = await asyncio.gather(
        *(asyncio.to_thread(alembic, empty_database, "upgrade", "head") for _ in range(8))
    )
    assert [result.returncode for result in results] == [0] * 8, results
    migrated = [result for result in results if "Running upgrade" in result.stderr]
    assert len(migrated) == 1
    assert await revision(empty_database) == head()


async def test_blocked_migration_fails_without_blocking_readers(
    database_url: str, tmp_path: Path
) -> None:
    tree = copy_with_second_migration(tmp_path / "tree")
    holder = await asyncpg.connect(database_url)
    reader = await asyncpg.connect(database_url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.fetch("SELECT * FROM users")  # a long query: it blocks ALTER, but not readers

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
    assert longest < 5, "a reader waited longer than the lock timeout of one attempt"
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


async def test_migrations_do_not_disable_loggers(config: Config) -> None:
    logger = logging.getLogger("app.something")
    handlers = list(logging.getLogger().handlers)
    command.upgrade(config, "head")
    assert not logger.disabled
    assert logging.getLogger().handlers == handlers


def test_sql_is_printed_without_a_database() -> None:
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


def test_upgrade_reports_a_missing_database_url() -> None:
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
    assert "DATABASE_URL" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("sslmode=require&channel_binding=require", "sslmode=verify-full&sslrootcert=system"),
        ("keepalives_idle=30", "keepalives_idle"),
    ],
)
def test_upgrade_reports_an_unsupported_url_parameter(parameters: str, expected: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": f"postgresql://u:hunter2@127.0.0.1:1/d?{parameters}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "DATABASE_URL" in result.stderr
    assert expected in result.stderr
    assert "hunter2" not in result.stderr
    assert result.stderr.count("\n") == 1


async def test_url_parameters_apply_to_migrations(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(empty_database)
    await connection.execute("CREATE SCHEMA separate")
    separator = "&" if "?" in empty_database else "?"
    monkeypatch.setenv(
        "DATABASE_URL",
        f"{empty_database}{separator}application_name=mine&connect_timeout=9&channel_binding=prefer"
        "&options=-csearch_path%3Dseparate",
    )
    await asyncio.to_thread(command.upgrade, Config(ROOT / "alembic.ini"), "head")
    schema = "SELECT schemaname FROM pg_tables WHERE tablename = 'users'"
    assert await connection.fetchval(schema) == "separate"
    await connection.close()
