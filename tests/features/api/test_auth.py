"""Authentication and authorization of API requests."""

import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from app.settings import Settings
from quart_upsun.api.scopes import Scope
from quart_upsun.security.limits import Limit
from quart_upsun.testing.things import READ, bearer
from tests.features.api.resources import application, token_of
from tests.features.factories import Person, new_client

THINGS = "/api/v1/things"


async def test_a_login_session_has_all_scopes(client: Client, ada: Person) -> None:
    await ada.log_in(client)
    assert (await (await client.get("/api/v1/me")).get_json())["via"] == "session"
    assert (await client.post(THINGS, json={"name": "a"})).status_code == 201


async def test_rejects_unauthenticated_requests(client: Client) -> None:
    response = await client.get("/api/v1/me", headers={"Authorization": "Basic YTpi"})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'


async def test_rejects_token_without_the_required_scope(
    app: Quart, client: Client, ada: Person
) -> None:
    token = await token_of(app, ada, READ)
    response = await client.post(THINGS, json={"name": "a"}, headers=bearer(token))
    assert response.status_code == 403
    problem = await response.get_json()
    assert problem["scope"] == "things:write"
    assert "things:write" in problem["detail"]
    assert "insufficient_scope" in response.headers["WWW-Authenticate"]


async def test_rejects_cross_site_requests_with_a_login_cookie(
    client: Client, ada: Person, token: str
) -> None:
    """Neither with the cookie alone nor with an additional token."""
    await ada.log_in(client)
    for headers in ({"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}):
        for more in ({}, {"Authorization": "Basic YTpi"}, bearer(token)):
            response = await client.post(THINGS, json={"name": "a"}, headers=headers | more)
            assert response.status_code == 403
            assert response.mimetype == "application/problem+json"


async def test_rate_limit_is_per_account_across_tokens_and_sessions(settings: Settings) -> None:
    """For every token and for sessions."""
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


def test_rejects_scope_name_longer_than_its_column() -> None:
    with pytest.raises(ValueError, match="20 characters"):
        Scope("a" * 21, "Too long")
