"""Fixtures for the toolkit's tests: the sample application with a database for each test."""

import os
from collections.abc import AsyncIterator
from typing import cast

import pytest
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import URL, text

from quart_upsun.database import Database
from quart_upsun.tests.sample import Settings, create_app


def pytest_configure() -> None:
    # Ignore settings in the developer's environment.
    for name in (*Settings.model_fields, "secret_key_fallbacks"):
        os.environ.pop(name.upper(), None)


@pytest.fixture
def settings(application_url: URL, direct_url: URL | None) -> Settings:
    return Settings(
        database_url=application_url,
        database_direct_url=direct_url,
        secret_key=SecretStr("a secret key for tests only"),
        log_level="debug",
        run_jobs=False,  # tests call `jobs.run_due()`
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    """The running sample application. Exceptions become error pages as in production."""
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
    """Insert a user and return its id. Some of the migrated tables reference users."""
    insert = "INSERT INTO users (username, password_hash) VALUES (:name, '') RETURNING id"
    async with database.write() as session:
        number: int = await session.scalar(text(insert), {"name": name})
    return number
