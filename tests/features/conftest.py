"""Fixtures shared by the tests of all features."""

import pytest
from argon2 import PasswordHasher
from quart import Quart
from quart.testing import QuartClient as Client

from app.user import passwords
from quart_upsun.database import Database
from tests.features.factories import Person

# The cheapest parameters of argon2. Hashing would otherwise take most of the time, because nearly
# every test registers and logs in.
QUICK = PasswordHasher(memory_cost=8, time_cost=1, parallelism=1)
DUMMY_HASH = QUICK.hash(b"")


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make password hashing fast. tests/unit/test_passwords.py uses the production parameters."""
    monkeypatch.setattr(passwords, "HASHER", QUICK)
    monkeypatch.setattr(passwords, "DUMMY_HASH", DUMMY_HASH)


@pytest.fixture
async def ada(app: Quart, client: Client) -> Person:
    """A user who is logged in with `client`."""
    person = await Person().register(app)
    await person.log_in(client)
    return person


@pytest.fixture
def database(app: Quart) -> Database:
    database: Database = app.extensions["quart_upsun"].database
    return database
