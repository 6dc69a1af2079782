"""Database ownership: which databases `alembic upgrade` migrates, and which it claims."""

import base64
import json
from pathlib import Path

import pytest
from sqlalchemy import make_url

from quart_upsun.testing.statements import connected
from tests.migrations.recipes import alembic, alembic_in, copy_with_second_migration, head

PRODUCTION = "main-bvxea6i"


def container(url: str, name: str, kind: str) -> dict[str, str]:
    """Return the variables of a container with a relationship to the database."""
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
    """A copy of the migrations with one additional migration."""
    return copy_with_second_migration(tmp_path / "tree")


@pytest.fixture
async def production(database_url: str) -> str:
    """Production's database, through a tunnel."""
    await give_to_production(database_url)
    return database_url


async def test_first_migration_claims_the_database(empty_database: str) -> None:
    assert alembic(empty_database, "upgrade", "head").returncode == 0
    assert await owner(empty_database) == ("tests", "local")


async def test_upgrade_refuses_a_database_of_another_environment(
    production: str, newer: Path
) -> None:
    result = alembic_in(newer, production, "upgrade", "head")
    assert result.returncode != 0
    assert f"{PRODUCTION} (production)" in result.stderr
    assert f"DATABASE_ENVIRONMENT={PRODUCTION}" in result.stderr
    assert "Traceback" not in result.stderr
    assert await revision(production) == head()
    assert await owner(production) == (PRODUCTION, "production")


@pytest.mark.parametrize("command", [("downgrade", "-1"), ("stamp", "head")])
async def test_other_commands_refuse_a_database_of_another_environment(
    production: str, newer: Path, command: tuple[str, ...]
) -> None:
    assert alembic_in(newer, production, *command).returncode != 0
    assert await revision(production) == head()


async def test_database_environment_allows_the_migration(production: str, newer: Path) -> None:
    for command, reached in ((("upgrade", "head"), "second"), (("downgrade", "-1"), head())):
        result = alembic_in(newer, production, *command, DATABASE_ENVIRONMENT=PRODUCTION)
        assert result.returncode == 0, result.stderr
        assert await revision(production) == reached


async def test_wrong_database_environment_is_refused(production: str, newer: Path) -> None:
    result = alembic_in(newer, production, "upgrade", "head", DATABASE_ENVIRONMENT="main")
    assert result.returncode != 0
    assert await revision(production) == head()


async def test_read_only_commands_work_on_a_database_of_another_environment(
    database_url: str,
) -> None:
    """So does an upgrade with nothing to do, which `make migration` runs through a tunnel."""
    await give_to_production(database_url)
    for command in (("upgrade", "head"), ("check",), ("current",)):
        result = alembic(database_url, *command)
        assert result.returncode == 0, result.stderr
    assert await owner(database_url) == (PRODUCTION, "production")


async def test_database_without_an_owner_requires_database_environment(
    database_url: str, newer: Path
) -> None:
    """It may be production's, migrated by a process without an environment name."""
    async with connected(database_url) as connection:
        await connection.execute("DELETE FROM database_owner")
    result = alembic_in(newer, database_url, "upgrade", "head", DATABASE_ENVIRONMENT="")
    assert result.returncode != 0
    assert "DATABASE_ENVIRONMENT" in result.stderr
    result = alembic_in(newer, database_url, "upgrade", "head", DATABASE_ENVIRONMENT="mine")
    assert result.returncode == 0, result.stderr
    assert await owner(database_url) == ("mine", "local")


async def test_preview_claims_its_clone_of_production(production: str) -> None:
    preview = container(production, "feature-4tw7dqi", "development")
    result = alembic(production, "upgrade", "head", **preview)
    assert result.returncode == 0, result.stderr
    assert await owner(production) == ("feature-4tw7dqi", "development")


async def test_preview_does_not_claim_productions_own_database(
    production: str, newer: Path
) -> None:
    """For instance if the project sets DATABASE_URL for all environments."""
    elsewhere = "postgresql://main@10.0.0.1:5432/main"
    preview = container(elsewhere, "feature-4tw7dqi", "development")
    preview["DATABASE_ENVIRONMENT"] = ""
    result = alembic_in(newer, production, "upgrade", "head", **preview)
    assert result.returncode != 0
    assert await owner(production) == (PRODUCTION, "production")


async def test_upgrade_does_nothing_if_the_database_is_ahead(database_url: str) -> None:
    """As after a rollback of the code."""
    async with connected(database_url) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    result = alembic(database_url, "upgrade", "head")
    assert result.returncode == 0, result.stderr
    assert "revision ffffffffffff" in result.stderr
    assert await revision(database_url) == "ffffffffffff"


async def test_preview_claims_a_clone_that_is_ahead(production: str) -> None:
    async with connected(production) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    preview = container(production, "feature-4tw7dqi", "development")
    result = alembic(production, "upgrade", "head", **preview)
    assert result.returncode == 0, result.stderr
    assert await owner(production) == ("feature-4tw7dqi", "development")


async def test_downgrade_fails_if_the_database_is_ahead(database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    result = alembic(database_url, "downgrade", "base")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr


async def test_upgrade_reports_a_read_only_database(empty_database: str) -> None:
    name = make_url(empty_database).database
    async with connected(empty_database) as connection:
        await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    result = alembic(empty_database, "upgrade", "head")
    assert result.returncode != 0
    assert "read-only" in result.stderr
    assert "Traceback" not in result.stderr
