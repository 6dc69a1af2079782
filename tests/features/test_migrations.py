"""The migrations create the tables that the models describe."""

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

from app.settings import ROOT


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, empty_database: str) -> Config:
    """Alembic's configuration for an empty database."""
    monkeypatch.setenv("DATABASE_URL", empty_database)
    return Config(ROOT / "alembic.ini")


async def test_upgrade_and_downgrade_leave_no_drift(config: Config, empty_database: str) -> None:
    """Alembic is called inside a running event loop, as an application may do."""
    command.upgrade(config, "head")
    command.check(config)
    command.downgrade(config, "base")
    connection = await asyncpg.connect(empty_database)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()
    assert [row["tablename"] for row in rows] == ["alembic_version"]
    command.upgrade(config, "head")
    command.check(config)


def test_migrations_do_not_import_the_application() -> None:
    """Migrations must still run after the code has changed."""
    for path in (ROOT / "alembic" / "versions").glob("*.py"):
        text = path.read_text()
        assert "import app" not in text, path
        assert "from app" not in text, path
