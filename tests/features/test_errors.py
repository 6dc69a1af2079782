"""Error pages: words for people, the right status, nothing of the inside."""

import asyncio
from typing import cast

import pytest
from quart import Quart, abort
from quart.testing import QuartClient as Client
from sqlalchemy import text
from werkzeug.exceptions import TooManyRequests

from app import create_app
from app.errors import MESSAGES
from app.settings import Settings


@pytest.fixture
async def failing_client(settings: Settings) -> Client:
    """A client of the application with routes that fail on purpose."""
    app = create_app(settings)

    @app.get("/abort/<int:code>")
    async def fail(code: int) -> str:
        if code == 429:
            raise TooManyRequests(retry_after=7)
        abort(code)

    @app.get("/crash")
    async def crash() -> str:
        raise ValueError("the inside")

    @app.get("/crash-in-database")
    async def crash_in_database() -> str:
        async with app.extensions["database"].read() as session:
            await session.execute(text("SELECT * FROM nowhere WHERE x = :x"), {"x": "inside"})
        return ""

    @app.get("/slow-query")
    async def slow_query() -> str:
        async with app.extensions["database"].read() as session:
            await session.execute(text("SET statement_timeout = '20ms'"))
            await session.execute(text("SELECT pg_sleep(5)"))
        return ""

    return cast(Client, app.test_client())


@pytest.mark.parametrize("code", sorted(MESSAGES))
async def test_every_error_has_a_page(failing_client: Client, code: int) -> None:
    response = await failing_client.get(f"/abort/{code}")
    text = await response.get_data(as_text=True)
    assert response.status_code == code
    assert response.mimetype == "text/html"
    assert MESSAGES[code] in text
    assert str(code) in text
    assert response.headers["Cache-Control"] == "private, no-store"


async def test_headers_of_the_error_are_kept(failing_client: Client) -> None:
    assert (await failing_client.get("/abort/429")).headers["Retry-After"] == "7"
    response = await failing_client.get("/logout/")
    assert response.status_code == 405
    assert set(response.headers["Allow"].replace(",", " ").split()) == {"POST", "OPTIONS"}


@pytest.mark.parametrize("path", ["/crash", "/crash-in-database"])
async def test_a_crash_shows_nothing_of_the_inside(
    failing_client: Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = await failing_client.get(f"{path}?password=hunter2")
    assert response.status_code == 500
    page = await response.get_data(as_text=True)
    assert "inside" not in page
    assert "Traceback" not in page
    assert 'id="loginForm"' not in page
    assert "Exception on request GET" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_query_that_takes_too_long_is_503(failing_client: Client) -> None:
    response = await failing_client.get("/slow-query")
    assert response.status_code == 503
    assert response.headers["Retry-After"]


async def test_a_body_over_the_limit_is_413(client: Client) -> None:
    response = await client.post("/login/", form={"username": "x" * 1_100_000})
    assert response.status_code == 413
    assert MESSAGES[413] in await response.get_data(as_text=True)


async def test_odd_requests_are_no_server_errors(app: Quart) -> None:
    client = cast(Client, app.test_client())
    responses = await asyncio.gather(
        client.get("/%0aforged"),
        client.get("/%00"),
        client.get("/%F0%9F%98%80"),
        client.get("/login/?next=%00%0d%0aSet-Cookie:a=b"),
        client.get("/", headers={"Cookie": "\x7f=\xff; ; =; session=\xe9"}),
        client.get("/users/", headers={"Cookie": "login=" + "x" * 8000}),
        client.get("/", headers={"Accept-Language": "\xff" * 100}),
        client.open("/", method="BREW"),
    )
    for response in responses:
        assert response.status_code < 500
        assert "Set-Cookie" not in response.headers or "a=b" not in response.headers["Set-Cookie"]
