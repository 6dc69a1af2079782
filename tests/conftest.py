"""Fixtures for the application's tests."""

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
    # Ignore settings in the developer's environment.
    for name in (*Settings.model_fields, "secret_key_fallbacks"):
        os.environ.pop(name.upper(), None)
    if not hasattr(config, "workerinput"):
        # Otherwise each application and each test server would compile all templates, which would
        # be most of the time of many tests.
        with suppress(AssetsMissingError):  # tests that need the assets fail on their own
            templating.compile_all("app")


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(
        database_url=parse_database_url(database_url),
        secret_key=SecretStr("a key for tests, of no worth anywhere else"),
        log_level="debug",
        run_jobs=False,  # tests call `jobs.run_due()`
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    """The running application. Exceptions become error pages as in production."""
    app = create_app(settings)
    async with app.test_app():
        yield app


@pytest.fixture
def client(app: Quart) -> Client:
    return cast(Client, app.test_client())


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> "Releases":
    """Releases of this application.

    Only for tests in the xdist group `builds`. Other workers would build them again.
    """
    from tests.deploy.releases import make_releases

    return make_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
async def images(releases: "Releases") -> dict[str, Path]:
    """The images that the build hook creates for the first two releases, by revision."""
    from tests.deploy.releases import build_images

    require("bwrap")
    return await build_images(releases)


@pytest.fixture
def built(releases: "Releases", images: dict[str, Path]) -> "Releases":
    """The releases, after their images are built, so that no build slows down the test."""
    return releases
