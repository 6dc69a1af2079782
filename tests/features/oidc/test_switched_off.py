"""Without a configured provider, nothing of the feature is visible."""

import pytest
from quart.testing import QuartClient as Client

from app.settings import Settings
from tests.features.factories import Person


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"oidc_providers": ()})


async def test_no_button_no_card_no_page(client: Client, ada: Person) -> None:
    assert "providers" not in await (await client.get("/account/")).get_data(as_text=True)
    assert (await client.get("/account/providers/")).status_code == 404
    assert (await client.post("/account/providers/mine/link/")).status_code == 404
    assert (await client.post("/login/with/mine/")).status_code == 404
    await client.post("/logout/")
    for path in ("/login/", "/register/"):
        assert "/login/with/" not in await (await client.get(path)).get_data(as_text=True)
        assert "provider-logins" not in await (await client.get(path)).get_data(as_text=True)
