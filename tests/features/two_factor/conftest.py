"""Fixtures for the tests of two-factor authentication."""

import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from app.user.two_factor import totp
from tests.features.factories import Person
from tests.features.two_factor.factories import Authenticator, Clock, enrol


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time steps of server and apps. A real one could end in the middle of a test."""
    clock = Clock()
    monkeypatch.setattr(totp, "current_step", clock.current_step)
    return clock


@pytest.fixture
async def phone(app: Quart, client: Client, ada: Person, clock: Clock) -> Authenticator:
    """The app of Ada, who is logged in with `client` and has two-factor authentication."""
    return await enrol(client, clock)
