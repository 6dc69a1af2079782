"""Error pages and exception logging: status, headers, and no internal details."""

import asyncio
from typing import cast

import pytest
from quart import Quart, abort, request
from quart.testing import QuartClient as Client
from quart.testing.connections import WebsocketResponseError
from sqlalchemy import text
from werkzeug.exceptions import TooManyRequests

from quart_upsun.tests.sample import create_app
from quart_upsun.tests.sample.settings import Settings
from quart_upsun.web.errors import MESSAGES


@pytest.fixture
async def failing_client(settings: Settings) -> Client:
    """A client of the application with routes that raise errors."""
    app = create_app(settings)

    @app.get("/abort/<int:code>")
    async def fail(code: int) -> str:
        if code == 429:
            raise TooManyRequests(retry_after=7)
        abort(code)

    @app.post("/send/")
    async def send() -> str:
        return ""

    @app.get("/crash")
    async def crash() -> str:
        raise ValueError("the inside")

    @app.route("/open/<token>/", methods=["GET", "POST"])
    async def open_with(token: str) -> str:
        form = await request.form
        raise ValueError(f"cannot use {token}, {request.args.get('next')!r} and {dict(form)}")

    @app.websocket("/live/<token>/")
    async def live(token: str) -> None:
        raise ValueError(f"cannot use {token}")

    @app.get("/crash-in-database")
    async def crash_in_database() -> str:
        async with app.extensions["quart_upsun"].database.read() as session:
            await session.execute(text("SELECT * FROM nowhere WHERE x = :x"), {"x": "inside"})
        return ""

    @app.get("/slow-query")
    async def slow_query() -> str:
        async with app.extensions["quart_upsun"].database.read() as session:
            await session.execute(text("SET statement_timeout = '20ms'"))
            await session.execute(text("SELECT pg_sleep(5)"))
        return ""

    return cast(Client, app.test_client())


@pytest.mark.parametrize("code", sorted(MESSAGES))
async def test_every_error_has_an_html_page(failing_client: Client, code: int) -> None:
    response = await failing_client.get(f"/abort/{code}")
    text = await response.get_data(as_text=True)
    assert response.status_code == code
    assert response.mimetype == "text/html"
    assert MESSAGES[code] in text
    assert str(code) in text
    assert response.headers["Cache-Control"] == "private, no-store"


async def test_headers_of_the_exception_are_kept(failing_client: Client) -> None:
    assert (await failing_client.get("/abort/429")).headers["Retry-After"] == "7"
    response = await failing_client.get("/send/")
    assert response.status_code == 405
    assert set(response.headers["Allow"].replace(",", " ").split()) == {"POST", "OPTIONS"}


@pytest.mark.parametrize("path", ["/crash", "/crash-in-database"])
async def test_unhandled_exception_shows_no_details(
    failing_client: Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = await failing_client.get(f"{path}?password=hunter2")
    assert response.status_code == 500
    page = await response.get_data(as_text=True)
    assert "inside" not in page
    assert "Traceback" not in page
    assert "'event': 'unhandled exception'" in caplog.text
    assert "'method': 'GET'" in caplog.text
    assert "hunter2" not in caplog.text


async def test_unhandled_exception_is_logged_without_request_values(
    failing_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Paths can contain valid tokens, and exception messages quote invalid values."""
    response = await failing_client.post(
        "/open/a-token-in-the-path/?next=hunter\\3", form={"password": "hunter2", "keep": "y"}
    )
    assert response.status_code == 500
    assert "'method': 'POST', 'route': '/open/<token>/'" in caplog.text
    assert "ValueError: cannot use [hidden]" in caplog.text
    for value in ("a-token", "hunter"):
        assert value not in caplog.text


async def test_websocket_exception_is_logged_with_its_url_rule(
    failing_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WebsocketResponseError) as caught:
        async with failing_client.websocket("/live/a-token-in-the-path/") as connection:
            await connection.receive()
    assert caught.value.response.status_code == 500
    assert "'method': 'websocket', 'route': '/live/<token>/'" in caplog.text
    assert "a-token" not in caplog.text


async def test_exception_without_a_route_is_logged_without_its_path(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings)

    @app.before_request
    async def fail() -> None:
        raise ValueError("the inside")

    response = await app.test_client().get("/open/a-token/which/leads/nowhere")
    assert response.status_code == 500
    assert "'event': 'unhandled exception'" in caplog.text
    assert "'method': 'GET'" in caplog.text
    assert "a-token" not in caplog.text


async def test_query_timeout_is_503(failing_client: Client) -> None:
    response = await failing_client.get("/slow-query")
    assert response.status_code == 503
    assert response.headers["Retry-After"]


async def test_body_over_the_limit_is_413(client: Client) -> None:
    response = await client.post("/rows/", form={"kind": "x" * 1_100_000})
    assert response.status_code == 413
    assert MESSAGES[413] in await response.get_data(as_text=True)


async def test_malformed_requests_are_not_server_errors(app: Quart) -> None:
    client = cast(Client, app.test_client())
    responses = await asyncio.gather(
        client.get("/%0aforged"),
        client.get("/%00"),
        client.get("/%F0%9F%98%80"),
        client.get("/about/?next=%00%0d%0aSet-Cookie:a=b"),
        client.get("/", headers={"Cookie": "\x7f=\xff; ; =; session=\xe9"}),
        client.get("/rows/", headers={"Cookie": "login=" + "x" * 8000}),
        client.get("/", headers={"Accept-Language": "\xff" * 100}),
        client.open("/", method="BREW"),
    )
    for response in responses:
        assert response.status_code < 500
        assert "Set-Cookie" not in response.headers or "a=b" not in response.headers["Set-Cookie"]
