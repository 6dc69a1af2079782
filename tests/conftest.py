"""Fixtures for the application's tests."""

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import cast

import pytest
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import URL

from app import create_app
from app.settings import Settings
from quart_upsun.web import templating
from quart_upsun.web.assets import AssetsMissingError


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
def settings(application_url: URL, direct_url: URL | None) -> Settings:
    return Settings(
        database_url=application_url,
        database_direct_url=direct_url,
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
