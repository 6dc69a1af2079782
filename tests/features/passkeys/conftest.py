"""Fixtures: an account with a passkey."""

import pytest
from quart.testing import QuartClient as Client

from tests.features.factories import Person
from tests.features.passkeys.authenticator import Authenticator
from tests.features.passkeys.steps import add_passkey


@pytest.fixture
async def laptop(client: Client, ada: Person) -> Authenticator:
    """A passkey of Ada, who is logged in with `client`."""
    authenticator = Authenticator()
    added = await add_passkey(client, authenticator)
    assert added.status == 303, added.text
    return authenticator
