"""CORS: which origins can use the API from a browser."""

from collections.abc import AsyncIterator

import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from app.settings import Settings
from quart_upsun.testing.things import bearer
from tests.features.api.resources import application
from tests.features.factories import Person

THINGS = "/api/v1/things"
ALLOWED_ORIGIN = "https://app.example.com"
OTHER_ORIGINS = [
    "https://evil.example",
    "http://app.example.com",
    f"{ALLOWED_ORIGIN}:8443",
    "null",
    f"{ALLOWED_ORIGIN}.",
]
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
    "Sec-Fetch-Site": "cross-site",
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"cors_origins": f"{ALLOWED_ORIGIN}, http://localhost:3000"})


@pytest.fixture
async def app_without_cors(settings: Settings) -> AsyncIterator[Quart]:
    """The application without allowed origins."""
    app = application(settings.model_copy(update={"cors_origins": ""}))
    async with app.test_app():
        yield app


def cors_headers(headers: object) -> list[str]:
    return [name for name, _ in headers.items() if name.lower().startswith("access-control")]  # type: ignore[attr-defined]


async def test_allowed_origin_passes_preflight_and_request(client: Client, token: str) -> None:
    response = await client.options(THINGS, headers={"Origin": ALLOWED_ORIGIN, **PREFLIGHT})
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == ALLOWED_ORIGIN
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert {"Authorization", "X-API-Key", "Content-Type", "Idempotency-Key"} <= set(
        response.headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert response.headers["Access-Control-Max-Age"] == "600"
    headers = {"Origin": ALLOWED_ORIGIN, "Sec-Fetch-Site": "cross-site", **bearer(token)}
    response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert response.status_code == 201
    assert response.headers["Access-Control-Allow-Origin"] == ALLOWED_ORIGIN
    assert {"ETag", "Link", "Location", "Retry-After", "Idempotency-Replayed"} <= set(
        response.headers["Access-Control-Expose-Headers"].split(", ")
    )
    assert {"Origin"} <= set(response.vary)


async def test_allowed_origin_can_read_error_responses(client: Client, token: str) -> None:
    for path, headers in (
        ("/api/v1/nothing", {}),
        ("/api/v1/me", {}),
        (f"{THINGS}/429", bearer(token)),
        (f"{THINGS}/500", bearer(token)),
    ):
        response = await client.get(path, headers={"Origin": ALLOWED_ORIGIN, **headers})
        assert response.status_code >= 400
        assert response.headers["Access-Control-Allow-Origin"] == ALLOWED_ORIGIN


async def test_credentials_are_never_allowed(client: Client, ada: Person) -> None:
    """A page of an allowed origin cannot use the login cookie."""
    await ada.log_in(client)
    for origin in (ALLOWED_ORIGIN, *OTHER_ORIGINS):
        response = await client.options(THINGS, headers={"Origin": origin, **PREFLIGHT})
        assert "Access-Control-Allow-Credentials" not in response.headers
        for headers in ({}, {"Authorization": "Basic YTpi"}):
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", **headers}
            response = await client.post(THINGS, json={"name": "a"}, headers=headers)
            assert response.status_code == 403
            assert "Access-Control-Allow-Credentials" not in response.headers


async def test_token_takes_precedence_over_cookie_in_cross_origin_requests(
    client: Client, ada: Person, token: str
) -> None:
    await ada.log_in(client)
    headers = {"Origin": ALLOWED_ORIGIN, "Sec-Fetch-Site": "cross-site", **bearer("qu_wrong")}
    assert (await client.post(THINGS, json={"name": "a"}, headers=headers)).status_code == 401
    # Pages do not accept tokens.
    headers = {"Origin": ALLOWED_ORIGIN, "Sec-Fetch-Site": "cross-site", **bearer(token)}
    for path in ("/account/sign-out/", "/logout/", "/account/delete/"):
        response = await client.post(path, headers=headers)
        assert response.status_code == 403
        assert cors_headers(response.headers) == []


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
async def test_other_origins_get_no_cors_headers(client: Client, token: str, origin: str) -> None:
    response = await client.options(THINGS, headers={"Origin": origin, **PREFLIGHT})
    assert cors_headers(response.headers) == []
    assert "Origin" in response.vary
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", **bearer(token)}
    response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert (response.status_code, cors_headers(response.headers)) == (403, [])


async def test_pages_have_no_cors_headers(client: Client) -> None:
    for path in ("/", "/about/", "/openapi.json", "/livez", "/nowhere/"):
        response = await client.get(path, headers={"Origin": ALLOWED_ORIGIN})
        assert cors_headers(response.headers) == []


async def test_cors_is_disabled_by_default(app_without_cors: Quart) -> None:
    client = app_without_cors.test_client()
    response = await client.options(THINGS, headers={"Origin": ALLOWED_ORIGIN, **PREFLIGHT})
    assert cors_headers(response.headers) == []
    assert "Origin" not in response.vary


async def test_requests_without_an_origin_get_no_cors_headers(client: Client, token: str) -> None:
    response = await client.post(THINGS, json={"name": "a"}, headers=bearer(token))
    assert response.status_code == 201
    assert cors_headers(response.headers) == []
