"""Who may use the API: logins, tokens and their scopes, limits."""

import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from app.settings import Settings
from quart_upsun.api.scopes import Scope
from quart_upsun.security.limits import Limit
from quart_upsun.tests.api.things import READ, bearer
from tests.features.api.resources import application, token_of
from tests.features.factories import Person, new_client

THINGS = "/api/v1/things"


async def test_a_login_lets_in_to_everything(client: Client, ada: Person) -> None:
    await ada.log_in(client)
    assert (await (await client.get("/api/v1/me")).get_json())["via"] == "session"
    assert (await client.post(THINGS, json={"name": "a"})).status_code == 201


async def test_nobody_is_let_in(client: Client) -> None:
    response = await client.get("/api/v1/me", headers={"Authorization": "Basic YTpi"})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'


async def test_a_token_is_good_for_its_scopes_only(app: Quart, client: Client, ada: Person) -> None:
    token = await token_of(app, ada, READ)
    response = await client.post(THINGS, json={"name": "a"}, headers=bearer(token))
    assert response.status_code == 403
    problem = await response.get_json()
    assert problem["scope"] == "things:write"
    assert "things:write" in problem["detail"]
    assert "insufficient_scope" in response.headers["WWW-Authenticate"]


async def test_another_site_cannot_use_a_login(client: Client, ada: Person, token: str) -> None:
    """And a token does not come along by itself, but what comes along is not enough."""
    await ada.log_in(client)
    for headers in ({"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}):
        for more in ({}, {"Authorization": "Basic YTpi"}, bearer(token)):
            response = await client.post(THINGS, json={"name": "a"}, headers=headers | more)
            assert response.status_code == 403
            assert response.mimetype == "application/problem+json"


async def test_changes_are_counted_by_account(settings: Settings) -> None:
    """Whatever token and whatever way in."""
    app = application(settings, Limit("things", 4, 3600))
    client = new_client(app)
    ada = await Person("ada").register(app)
    await ada.log_in(client)
    token = await token_of(app, ada)
    for headers in (bearer(token), {}) * 2:
        response = await client.post(THINGS, json={"name": "a"}, headers=headers)
        assert response.status_code == 201
    other = bearer(await token_of(app, ada))
    response = await client.post(THINGS, json={"name": "a"}, headers=other)
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    grace = bearer(await token_of(app, await Person("grace").register(app)))
    assert (await client.post(THINGS, json={"name": "a"}, headers=grace)).status_code == 201
    await app.extensions["quart_upsun"].database.close()


def test_a_scope_fits_its_column() -> None:
    with pytest.raises(ValueError, match="20 characters"):
        Scope("a" * 21, "Too long")
