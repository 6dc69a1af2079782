"""What the tests of all features have in common."""

import pytest
from argon2 import PasswordHasher
from quart import Quart
from quart.testing import QuartClient as Client

from app.user import passwords
from quart_upsun.database import Database
from tests.features.factories import Person

# argon2's least. Nearly every test has somebody who registers and logs in, and that would be most
# of its time.
QUICK = PasswordHasher(memory_cost=8, time_cost=1, parallelism=1)
NOBODYS = QUICK.hash(b"")


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash passwords with little work; tests/unit/test_passwords.py does it as in production."""
    monkeypatch.setattr(passwords, "HASHER", QUICK)
    monkeypatch.setattr(passwords, "DUMMY_HASH", NOBODYS)


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
