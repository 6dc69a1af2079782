"""Who has links, and where they are."""

import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from quart_upsun.database import Database
from tests.features.factories import Person


@pytest.fixture
async def ada(app: Quart, client: Client) -> Person:
    """Somebody who is logged in with `client`."""
    person = await Person().register(app)
    await person.log_in(client)
    return person


@pytest.fixture
def database(app: Quart) -> Database:
    found: Database = app.extensions["quart_upsun"].database
    return found
