"""Which other sites may ask the API from a browser."""

from collections.abc import AsyncIterator

import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from app.settings import Settings
from quart_upsun.tests.api.things import bearer
from tests.features.api.resources import application
from tests.features.factories import Person

THINGS = "/api/v1/things"
FRIEND = "https://app.example.com"
OTHERS = ["https://evil.example", "http://app.example.com", f"{FRIEND}:8443", "null", f"{FRIEND}."]
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
    "Sec-Fetch-Site": "cross-site",
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"cors_origins": f"{FRIEND}, http://localhost:3000"})


@pytest.fixture
async def closed(settings: Settings) -> AsyncIterator[Quart]:
    """The application as it is by default."""
    app = application(settings.model_copy(update={"cors_origins": ""}))
    async with app.test_app():
        yield app


def granted(headers: object) -> list[str]:
    return [name for name, _ in headers.items() if name.lower().startswith("access-control")]  # type: ignore[attr-defined]


async def test_a_friend_may_ask_first_and_then_do(client: Client, token: str) -> None:
    response = await client.options(THINGS, headers={"Origin": FRIEND, **PREFLIGHT})
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == FRIEND
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert {"Authorization", "X-API-Key", "Content-Type", "Idempotency-Key"} <= set(
        response.headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert response.headers["Access-Control-Max-Age"] == "600"
    headers = {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site", **bearer(token)}
    response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert response.status_code == 201
    assert response.headers["Access-Control-Allow-Origin"] == FRIEND
    assert {"ETag", "Link", "Location", "Retry-After", "Idempotency-Replayed"} <= set(
        response.headers["Access-Control-Expose-Headers"].split(", ")
    )
    assert {"Origin"} <= set(response.vary)


async def test_a_friend_can_read_errors(client: Client, token: str) -> None:
    for path, headers in (
        ("/api/v1/nothing", {}),
        ("/api/v1/me", {}),
        (f"{THINGS}/429", bearer(token)),
        (f"{THINGS}/500", bearer(token)),
    ):
        response = await client.get(path, headers={"Origin": FRIEND, **headers})
        assert response.status_code >= 400
        assert response.headers["Access-Control-Allow-Origin"] == FRIEND


async def test_credentials_are_never_allowed(client: Client, ada: Person) -> None:
    """A friend's page cannot act for whoever is logged in here."""
    await ada.log_in(client)
    for origin in (FRIEND, *OTHERS):
        response = await client.options(THINGS, headers={"Origin": origin, **PREFLIGHT})
        assert "Access-Control-Allow-Credentials" not in response.headers
        for headers in ({}, {"Authorization": "Basic YTpi"}):
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", **headers}
            response = await client.post(THINGS, json={"name": "a"}, headers=headers)
            assert response.status_code == 403
            assert "Access-Control-Allow-Credentials" not in response.headers


async def test_a_token_beside_a_cookie_speaks_for_the_token_alone(
    client: Client, ada: Person, token: str
) -> None:
    await ada.log_in(client)
    headers = {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site", **bearer("qu_wrong")}
    assert (await client.post(THINGS, json={"name": "a"}, headers=headers)).status_code == 401
    # And on a page a token is worth nothing, whoever sends it.
    headers = {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site", **bearer(token)}
    for path in ("/account/sign-out/", "/logout/", "/account/delete/"):
        response = await client.post(path, headers=headers)
        assert response.status_code == 403
        assert granted(response.headers) == []


@pytest.mark.parametrize("origin", OTHERS)
async def test_others_are_told_nothing(client: Client, token: str, origin: str) -> None:
    response = await client.options(THINGS, headers={"Origin": origin, **PREFLIGHT})
    assert granted(response.headers) == []
    assert "Origin" in response.vary
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", **bearer(token)}
    response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert (response.status_code, granted(response.headers)) == (403, [])


async def test_pages_are_nobodys_to_read(client: Client) -> None:
    for path in ("/", "/about/", "/openapi.json", "/livez", "/nowhere/"):
        response = await client.get(path, headers={"Origin": FRIEND})
        assert granted(response.headers) == []


async def test_it_is_off_by_default(closed: Quart) -> None:
    client = closed.test_client()
    response = await client.options(THINGS, headers={"Origin": FRIEND, **PREFLIGHT})
    assert granted(response.headers) == []
    assert "Origin" not in response.vary


async def test_programs_outside_of_browsers_name_no_origin(client: Client, token: str) -> None:
    response = await client.post(THINGS, json={"name": "a"}, headers=bearer(token))
    assert response.status_code == 201
    assert granted(response.headers) == []
