"""Error pages, and malformed requests."""

import asyncio
from typing import cast

import pytest
from quart import Quart, abort
from quart.testing import QuartClient as Client

from app import create_app
from app.settings import Settings
from quart_upsun.web.errors import MESSAGES
from tests.features.factories import LOGIN_COOKIE


@pytest.fixture
def failing_client(settings: Settings) -> Client:
    """A client of an application with failing routes."""
    app = create_app(settings)

    @app.get("/abort/<int:code>")
    async def fail(code: int) -> str:
        abort(code)

    @app.get("/crash")
    async def crash() -> str:
        raise ValueError("internal detail")

    return cast(Client, app.test_client())


@pytest.mark.parametrize("code", sorted(MESSAGES))
async def test_error_page_has_status_and_message(failing_client: Client, code: int) -> None:
    response = await failing_client.get(f"/abort/{code}")
    text = await response.get_data(as_text=True)
    assert response.status_code == code
    assert MESSAGES[code] in text
    assert str(code) in text


async def test_server_error_page_reveals_no_details(failing_client: Client) -> None:
    response = await failing_client.get("/crash")
    assert response.status_code == 500
    page = await response.get_data(as_text=True)
    assert "internal detail" not in page
    assert 'id="loginForm"' not in page


async def test_form_too_large_is_413(client: Client) -> None:
    response = await client.post("/login/", form={"username": "x" * 1_100_000})
    assert response.status_code == 413
    assert MESSAGES[413] in await response.get_data(as_text=True)


async def test_malformed_requests_are_not_server_errors(app: Quart) -> None:
    client = cast(Client, app.test_client())
    responses = await asyncio.gather(
        client.get("/login/?next=%00%0d%0aSet-Cookie:a=b"),
        client.get("/users/", headers={"Cookie": f"{LOGIN_COOKIE}={'x' * 8000}"}),
        client.get("/api/v1/any", headers={"X-API-Key": "\xff" * 9000}),
        client.open("/api/v1/any", method="BREW"),
    )
    for response in responses:
        assert response.status_code < 500
        assert "Set-Cookie" not in response.headers or "a=b" not in response.headers["Set-Cookie"]
