"""The sample application with a test resource, and a token for it."""

from collections.abc import AsyncIterator

import pytest
from quart import Quart

from quart_upsun.testing.things import CHANGES, things
from quart_upsun.tests.sample import Settings, create_app


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    app = create_app(settings)
    app.register_blueprint(things(CHANGES))
    async with app.test_app():
        yield app


@pytest.fixture
def token(user: int) -> str:
    return f"token-{user}"
