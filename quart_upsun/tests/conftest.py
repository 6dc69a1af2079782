"""The sample, with a database of its own for each test that asks for one."""

import os
from collections.abc import AsyncIterator
from typing import cast

import pytest
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import text

from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.tests.sample import Settings, create_app


def pytest_configure() -> None:
    # What the developer's shell says to an application is not for the tests.
    for name in (*Settings.model_fields, "secret_key_fallbacks"):
        os.environ.pop(name.upper(), None)


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(
        database_url=parse_database_url(database_url),
        secret_key=SecretStr("a key for tests, of no worth anywhere else"),
        log_level="debug",
        run_jobs=False,  # a test runs them when it wants to: `jobs.run_due()`
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    """The sample, started; exceptions become error pages as in production."""
    app = create_app(settings)
    async with app.test_app():
        yield app


@pytest.fixture
def client(app: Quart) -> Client:
    return cast(Client, app.test_client())


@pytest.fixture
def database(app: Quart) -> Database:
    found: Database = app.extensions["quart_upsun"].database
    return found


@pytest.fixture
async def user(database: Database) -> int:
    return await add_user(database, "ada")


async def add_user(database: Database, name: str) -> int:
    """Return the number of a new user: the migrations make tables that refer to users."""
    insert = "INSERT INTO users (username, password_hash) VALUES (:name, '') RETURNING id"
    async with database.write() as session:
        number: int = await session.scalar(text(insert), {"name": name})
    return number
