"""The application, and a database of its own for each test that asks for one."""

import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import make_url

from app import create_app
from app.settings import ROOT, Settings
from development.programs import require
from quart_upsun.database.url import parse_database_url
from quart_upsun.web import templating
from quart_upsun.web.assets import AssetsMissingError

if TYPE_CHECKING:
    from tests.deploy.releases import Releases


def pytest_configure(config: pytest.Config) -> None:
    # What the developer's shell says to the application is not for the tests.
    for name in (*Settings.model_fields, "secret_key_fallbacks"):
        os.environ.pop(name.upper(), None)
    # The databases of tests belong to the tests, and to the processes that they start.
    os.environ["DATABASE_ENVIRONMENT"] = "tests"
    if not hasattr(config, "workerinput"):
        # Each application would compile its templates anew, and each server that tests start:
        # that would be most of the time that many a test takes.
        with suppress(AssetsMissingError):  # the tests that need them say so
            templating.compile_all("app")


async def create_database(server_url: str, template: str) -> str:
    """Create a database, and return its URL in the form a platform would give."""
    name = f"test_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(
            f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY'
        )
    finally:
        await connection.close()
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def drop_database(server_url: str, url: str) -> None:
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')
    finally:
        await connection.close()


@pytest.fixture
async def empty_database(server_url: str) -> AsyncIterator[str]:
    """A database nobody has migrated."""
    url = await create_database(server_url, "template0")
    yield url
    await drop_database(server_url, url)


def migrate() -> None:
    if ini := os.environ.get("TEST_MIGRATIONS"):
        # Those of the next release, on which this one must work: rehearsal/compatibility.py.
        alembic = [sys.executable, "-m", "alembic", "-c", ini, "upgrade", "head"]
        subprocess.run(alembic, cwd=Path(ini).parent, check=True)
    else:
        command.upgrade(Config(ROOT / "alembic.ini"), "head")


@pytest.fixture(scope="session")
async def migrated_template(server_url: str) -> AsyncIterator[str]:
    """The name of a database at the newest revision, to copy from."""
    url = await create_database(server_url, "template0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        migrate()
    name = make_url(url).database
    assert name
    yield name
    await drop_database(server_url, url)


@pytest.fixture
async def database_url(server_url: str, migrated_template: str) -> AsyncIterator[str]:
    """A migrated database that belongs to one test."""
    url = await create_database(server_url, migrated_template)
    yield url
    await drop_database(server_url, url)


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
    """The application, started; exceptions become error pages as in production."""
    app = create_app(settings)
    async with app.test_app():
        yield app


@pytest.fixture
def client(app: Quart) -> Client:
    return cast(Client, app.test_client())


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> "Releases":
    """Releases of this application.

    For tests in the group `builds` alone: elsewhere they would be built once more.
    """
    from tests.deploy.releases import make_releases

    return make_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
async def images(releases: "Releases") -> dict[str, Path]:
    """What the build hook has made of the first and the second of them, by revision."""
    from tests.deploy.releases import build_images

    require("bwrap")
    return await build_images(releases)


@pytest.fixture
def built(releases: "Releases", images: dict[str, Path]) -> "Releases":
    """The releases with their images: no build is to take the processor away from visitors."""
    return releases
