"""The application."""

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client

from app import create_app
from app.settings import Settings
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.programs import require
from quart_upsun.web import templating
from quart_upsun.web.assets import AssetsMissingError

if TYPE_CHECKING:
    from tests.deploy.releases import Releases


def pytest_configure(config: pytest.Config) -> None:
    # What the developer's shell says to the application is not for the tests.
    for name in (*Settings.model_fields, "secret_key_fallbacks"):
        os.environ.pop(name.upper(), None)
    if not hasattr(config, "workerinput"):
        # Each application would compile its templates anew, and each server that tests start:
        # that would be most of the time that many a test takes.
        with suppress(AssetsMissingError):  # the tests that need them say so
            templating.compile_all("app")


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
