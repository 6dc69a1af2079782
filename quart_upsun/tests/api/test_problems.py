"""API errors: problem+json, the right status, no internals and no values from the request."""

import asyncio
import gzip
from typing import Any

import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from quart_upsun.api.problems import DETAILS, MAX_ERRORS, NOT_JSON
from quart_upsun.testing.things import bearer

THINGS = "/api/v1/things"


async def problem(response: Any, status: int) -> dict[str, Any]:
    """Check that a response is a problem with this status, and return its members."""
    text = await response.get_data(as_text=True)
    assert response.status_code == status, text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "private, no-store"
    members: dict[str, Any] = await response.get_json(force=True)
    assert members["type"] == "about:blank"
    assert members["status"] == status
    assert members["title"]
    assert members["detail"]
    return members


@pytest.mark.parametrize("path", ["/api/", "/api/v1/nothing", "/api/v2/things", "/api/v1/things/"])
async def test_unknown_paths_return_404_problems(client: Client, path: str) -> None:
    assert (await problem(await client.get(path), 404))["detail"] == DETAILS[404]


async def test_pages_outside_the_api_return_html_errors(client: Client) -> None:
    for path in ("/nowhere/", "/api", "/apis/"):
        response = await client.get(path)
        assert (response.status_code, response.mimetype) == (404, "text/html")


async def test_wrong_method_returns_405_with_allow_header(client: Client) -> None:
    response = await client.put(THINGS)
    await problem(response, 405)
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


@pytest.mark.parametrize("status", [408, 410, 429, 500, 502, 503])
async def test_errors_raised_by_views_become_problems(
    client: Client, token: str, status: int
) -> None:
    response = await client.get(f"{THINGS}/{status}", headers=bearer(token))
    members = await problem(response, status)
    assert "inside" not in str(members)
    if status in {429, 503}:
        assert response.headers["Retry-After"] == {429: "7", 503: "5"}[status]


async def test_rejects_body_that_is_too_large(client: Client, token: str) -> None:
    body = b"[" + b" " * 1_100_000 + b"]"
    headers = bearer(token) | {"Content-Type": "application/json"}
    await problem(await client.post(THINGS, data=body, headers=headers), 413)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_rejects_wrong_content_type(client: Client, token: str, kind: str) -> None:
    headers = bearer(token) | {"Content-Type": kind}
    await problem(await client.post(THINGS, data='{"name": "a"}', headers=headers), 415)


@pytest.mark.parametrize(
    "body",
    ["", "{", "secret", "[" * 100_000, '{"name": "\\ud800"}', b"\xff\xfe{}"],
)
async def test_rejects_invalid_json(client: Client, token: str, body: str | bytes) -> None:
    headers = bearer(token) | {"Content-Type": "application/json"}
    members = await problem(await client.post(THINGS, data=body, headers=headers), 400)
    assert members["detail"] == NOT_JSON
    assert "secret" not in str(members)


async def test_validation_errors_have_json_pointers_and_no_values(
    client: Client, token: str
) -> None:
    body = {"name": "hunter2" * 9, "sizes": [1, "hunter2"], "a/b~ü": "hunter2", "x" * 999: 1}
    response = await client.post(THINGS, json=body, headers=bearer(token))
    members = await problem(response, 422)
    assert "hunter2" not in str(members)
    pointers = {each["pointer"]: each["detail"] for each in members["errors"]}
    assert pointers.keys() == {"#/name", "#/sizes/1", "#/a~1b~0%C3%BC", "#/" + "x" * 80}
    assert "20 characters" in pointers["#/name"]
    for wrong in ("a\0b", float("nan"), 1, True, None):
        response = await client.post(THINGS, json={"name": wrong}, headers=bearer(token))
        assert (await problem(response, 422))["errors"][0]["pointer"] == "#/name"
    response = await client.post(THINGS, json=[1], headers=bearer(token))
    assert (await problem(response, 422))["errors"][0]["pointer"] == "#"


async def test_long_lists_of_validation_errors_are_truncated(client: Client, token: str) -> None:
    body = {"name": "a", "sizes": ["x"] * 5000}
    response = await client.post(THINGS, json=body, headers=bearer(token))
    members = await problem(response, 422)
    assert len(members["errors"]) == MAX_ERRORS
    assert members["detail"] != DETAILS[422]  # says that the list is incomplete
    body = {"name": "a", "sizes": ["x"] * MAX_ERRORS}
    response = await client.post(THINGS, json=body, headers=bearer(token))
    assert (await problem(response, 422))["detail"] == DETAILS[422]


async def test_accepts_json_with_a_byte_order_mark(client: Client, token: str) -> None:
    headers = bearer(token) | {"Content-Type": "application/json"}
    body = b'\xef\xbb\xbf{"name": "a"}'
    assert (await client.post(THINGS, data=body, headers=headers)).status_code == 201
    # A single one, at the beginning.
    for wrong in (b"\xef\xbb\xbf" + body, b'{"name": "a"}\xef\xbb\xbf', b"\xef\xbb\xbf"):
        await problem(await client.post(THINGS, data=wrong, headers=headers), 400)


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "nonsense"])
async def test_rejects_compressed_bodies(client: Client, token: str, coding: str) -> None:
    headers = bearer(token) | {"Content-Type": "application/json", "Content-Encoding": coding}
    response = await client.post(THINGS, data=gzip.compress(b'{"name": "a"}'), headers=headers)
    members = await problem(response, 415)
    assert members["detail"] == "The request body must not have a Content-Encoding."
    assert response.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
async def test_accepts_identity_content_encoding(client: Client, token: str, coding: str) -> None:
    headers = bearer(token) | {"Content-Encoding": coding}
    response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert response.status_code == 201


async def test_rejects_invalid_query_parameters(client: Client, token: str) -> None:
    for query in ("limit=hunter2", "limit=0", "limit=1&limit=2"):
        response = await client.get(f"{THINGS}?{query}", headers=bearer(token))
        members = await problem(response, 422)
        assert [each["parameter"] for each in members["errors"]] == ["limit"]
        assert "hunter2" not in str(members)


async def test_problems_can_have_additional_members(client: Client, token: str) -> None:
    response = await client.post(THINGS, json={"name": "taken"}, headers=bearer(token))
    members = await problem(response, 409)
    assert members["existing"] == "/api/v1/things/1"
    assert members["detail"] == "The thing already exists."


async def test_json_values_are_redacted_in_logs(
    client: Client, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"name": "crash", "sizes": [123456789]}
    await problem(await client.post(THINGS, json=body, headers=bearer(token)), 500)
    assert "ValueError: cannot make [hidden]" in caplog.text
    assert "123456789" not in caplog.text


async def test_head_and_options_requests(client: Client, token: str) -> None:
    response = await client.open(THINGS, method="HEAD", headers=bearer(token))
    assert response.status_code == 200
    response = await client.open(THINGS, method="HEAD")
    assert response.status_code == 401
    response = await client.open(THINGS, method="OPTIONS")
    assert response.status_code == 200
    assert "POST" in response.headers["Allow"]
    assert not any(name.lower().startswith("access-control") for name, _ in response.headers)


async def test_malformed_requests_are_not_server_errors(
    app: Quart, client: Client, token: str
) -> None:
    responses = await asyncio.gather(
        client.get("/api/%0aforged"),
        client.get("/api/%00"),
        client.get(f"{THINGS}/{10**30}", headers=bearer(token)),
        client.get(f"{THINGS}/-1", headers=bearer(token)),
        client.get(f"{THINGS}?kind=%00", headers=bearer(token)),
        client.get(THINGS, headers={"X-API-Key": "\xff" * 9000}),
        client.open(THINGS, method="BREW"),
    )
    for response in responses:
        assert response.status_code < 500
