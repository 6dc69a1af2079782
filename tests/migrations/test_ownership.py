"""Which databases `alembic upgrade` migrates, and whose they are afterwards."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.settings import ROOT
from quart_upsun.testing.statements import connected
from tests.migrations.recipes import copy_with_second_migration, head

PRODUCTION = "main-bvxea6i"


def alembic(url: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return alembic_in(ROOT, url, *arguments, **variables)


def alembic_in(
    directory: Path, url: str, *arguments: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=directory,
        env={**os.environ, "DATABASE_URL": url, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def container(url: str, name: str, kind: str) -> dict[str, str]:
    """Return the variables of a container whose relationship leads to the database."""
    address = make_url(url)
    endpoint = {"scheme": "pgsql", "host": address.host, "port": address.port}
    relationships = json.dumps({"postgresql": [endpoint]})
    return {
        "PLATFORM_APPLICATION_NAME": "app",
        "PLATFORM_ENVIRONMENT": name,
        "PLATFORM_ENVIRONMENT_TYPE": kind,
        "PLATFORM_RELATIONSHIPS": base64.b64encode(relationships.encode()).decode(),
    }


async def owner(url: str) -> tuple[str, str] | None:
    async with connected(url) as connection:
        row = await connection.fetchrow("SELECT environment, type FROM database_owner")
        return tuple(row) if row else None


async def revision(url: str) -> str:
    async with connected(url) as connection:
        found: str = await connection.fetchval("SELECT version_num FROM alembic_version")
        return found


async def give_to_production(url: str) -> None:
    async with connected(url) as connection:
        await connection.execute(
            "UPDATE database_owner SET environment = $1, type = 'production'", PRODUCTION
        )


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A tree with one migration more than this one."""
    return copy_with_second_migration(tmp_path / "tree")


@pytest.fixture
async def production(database_url: str) -> str:
    """Production's database, seen through a tunnel."""
    await give_to_production(database_url)
    return database_url


async def test_the_first_migration_claims_the_database(empty_database: str) -> None:
    assert alembic(empty_database, "upgrade", "head").returncode == 0
    assert await owner(empty_database) == ("tests", "local")


async def test_a_database_of_another_environment_is_not_migrated(
    production: str, newer: Path
) -> None:
    refused = alembic_in(newer, production, "upgrade", "head")
    assert refused.returncode != 0
    assert f"belongs to the environment {PRODUCTION} (production)" in refused.stderr
    assert f"set DATABASE_ENVIRONMENT={PRODUCTION}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert await revision(production) == head()
    assert await owner(production) == (PRODUCTION, "production")


@pytest.mark.parametrize("command", [("downgrade", "-1"), ("stamp", "head")])
async def test_no_other_command_changes_its_revision(
    production: str, newer: Path, command: tuple[str, ...]
) -> None:
    assert alembic_in(newer, production, *command).returncode != 0
    assert await revision(production) == head()


async def test_it_is_migrated_when_the_environment_is_named(production: str, newer: Path) -> None:
    for command, reached in ((("upgrade", "head"), "second"), (("downgrade", "-1"), head())):
        done = alembic_in(newer, production, *command, DATABASE_ENVIRONMENT=PRODUCTION)
        assert done.returncode == 0, done.stderr
        assert await revision(production) == reached


async def test_a_name_that_is_not_the_owners_does_not_help(production: str, newer: Path) -> None:
    refused = alembic_in(newer, production, "upgrade", "head", DATABASE_ENVIRONMENT="main")
    assert refused.returncode != 0
    assert await revision(production) == head()


async def test_commands_that_only_look_work_on_it(database_url: str) -> None:
    """So does an upgrade with nothing to do, as `make migration` runs it through a tunnel."""
    await give_to_production(database_url)
    for command in (("upgrade", "head"), ("check",), ("current",)):
        done = alembic(database_url, *command)
        assert done.returncode == 0, done.stderr
    assert await owner(database_url) == (PRODUCTION, "production")


async def test_a_database_without_an_owner_must_be_named(database_url: str, newer: Path) -> None:
    """It may be production's, migrated by a process that had no name."""
    async with connected(database_url) as connection:
        await connection.execute("DELETE FROM database_owner")
    refused = alembic_in(newer, database_url, "upgrade", "head", DATABASE_ENVIRONMENT="")
    assert refused.returncode != 0
    assert "does not say whose it is" in refused.stderr
    done = alembic_in(newer, database_url, "upgrade", "head", DATABASE_ENVIRONMENT="mine")
    assert done.returncode == 0, done.stderr
    assert await owner(database_url) == ("mine", "local")


async def test_a_preview_takes_over_its_clone_of_production(production: str) -> None:
    preview = container(production, "feature-4tw7dqi", "development")
    done = alembic(production, "upgrade", "head", **preview)
    assert done.returncode == 0, done.stderr
    assert await owner(production) == ("feature-4tw7dqi", "development")


async def test_a_preview_with_productions_own_database_leaves_it_alone(
    production: str, newer: Path
) -> None:
    """Such as one that DATABASE_URL names for the whole project."""
    elsewhere = "postgresql://main@10.0.0.1:5432/main"
    preview = container(elsewhere, "feature-4tw7dqi", "development")
    preview["DATABASE_ENVIRONMENT"] = ""
    refused = alembic_in(newer, production, "upgrade", "head", **preview)
    assert refused.returncode != 0
    assert await owner(production) == (PRODUCTION, "production")


async def test_a_database_that_is_ahead_has_nothing_to_migrate(database_url: str) -> None:
    """After a rollback of the code, which the schema gate serves as well."""
    async with connected(database_url) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    done = alembic(database_url, "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert "nothing to migrate: the database is at revision ffffffffffff" in done.stderr
    assert await revision(database_url) == "ffffffffffff"


async def test_a_clone_that_is_ahead_changes_hands(production: str) -> None:
    async with connected(production) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    preview = container(production, "feature-4tw7dqi", "development")
    done = alembic(production, "upgrade", "head", **preview)
    assert done.returncode == 0, done.stderr
    assert await owner(production) == ("feature-4tw7dqi", "development")


async def test_only_an_upgrade_has_nothing_to_do_then(database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    refused = alembic(database_url, "downgrade", "base")
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr


async def test_a_read_only_database_is_one_sentence(empty_database: str) -> None:
    name = make_url(empty_database).database
    async with connected(empty_database) as connection:
        await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    refused = alembic(empty_database, "upgrade", "head")
    assert refused.returncode != 0
    assert "the database is read-only" in refused.stderr
    assert "Traceback" not in refused.stderr
