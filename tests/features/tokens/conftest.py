"""The application with a test resource, and a user with an access token."""

from collections.abc import AsyncIterator

import pytest
from quart import Quart

from app.settings import Settings
from tests.features.api.resources import application
from tests.features.factories import Person
from tests.features.tokens.factories import make_token


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    app = application(settings)
    async with app.test_app():
        yield app


@pytest.fixture
async def ada(app: Quart) -> Person:
    return await Person("ada").register(app)


@pytest.fixture
async def token(app: Quart, ada: Person) -> str:
    """A token of Ada with the scopes of the test resource."""
    return await make_token(app, ada)
