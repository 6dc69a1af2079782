"""Proxy headers, cross-site checks, HTTP/2, request ids and error responses on the real server."""

import asyncio
import base64
import json
import socket
from urllib.parse import quote

import httpx
import pytest
from h2.connection import H2Connection
from h2.events import ResponseReceived
from hypercorn.config import Config

from quart_upsun.http.headers import SECURITY_HEADERS
from quart_upsun.server.serve import hypercorn_config
from quart_upsun.testing.servers import UPSUN, Connection, Server
from quart_upsun.tests.process.application import serving

FORGED = 'first\n{"event":"forged"}\r\n\x1b[2J'
# All variables that enable a traceback page in some framework.
DEBUG = dict.fromkeys(("FLASK_DEBUG", "QUART_DEBUG", "QUART_TESTING", "TESTING", "DEBUG"), "1")
# The application, and the Flask application that is mounted in it.
PREFIXES = pytest.mark.parametrize("prefix", ["", "/old"], ids=["own", "mounted"])
PROCESSES = pytest.mark.parametrize("processes", [1, 2])


def test_hypercorn_has_every_option() -> None:
    """It ignores unknown options."""
    with socket.socket() as listener:
        config = hypercorn_config(listener.fileno())
    assert [name for name in vars(config) if not hasattr(Config, name)] == []


@PROCESSES
@pytest.mark.parametrize("platform", [{}, UPSUN], ids=["laptop", "upsun"])
@PREFIXES
async def test_proxy_headers_are_trusted_on_upsun_only(
    processes: int, platform: dict[str, str], prefix: str
) -> None:
    headers = {
        "Host": "www.example.com",
        "X-Client-IP": "192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "203.0.113.1",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=203.0.113.2;host=evil.example;proto=http",
    }
    async with (
        serving(processes, **platform) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        path = f"{prefix}/origin"
        origin = (await client.get(path, headers=headers)).json()
        plain = (await client.get(path, headers={"Host": "www.example.com"})).json()
        await server.stop_cleanly()
    direct = {"address": "127.0.0.1", "scheme": "http", "host": "www.example.com"}
    routed = {"address": "192.0.2.7", "scheme": "https", "host": "www.example.com"}
    assert origin == (routed if platform else direct)
    assert plain == direct


@PREFIXES
async def test_public_origin_does_not_override_the_routes_on_upsun(prefix: str) -> None:
    """A `PUBLIC_ORIGIN` that is set for the whole project is production's, also in previews."""
    variables = {**UPSUN, "PUBLIC_ORIGIN": "https://production.example"}
    async with (
        serving(1, **variables) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        headers = {"Host": "preview.example", "Origin": "https://production.example"}
        assert (await client.post(f"{prefix}/quick", headers=headers)).status_code == 403


@PROCESSES
async def test_an_error_page_shows_no_traceback_on_upsun(processes: int) -> None:
    variables = {**UPSUN, "PLATFORM_ENVIRONMENT_TYPE": "development", "FLASK_DEBUG": "1"}
    async with (
        serving(processes, **variables) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        answer = await client.get(
            f"/error/{quote(FORGED)}?name=hunter2", headers={"Referer": "/?name=hunter2"}
        )
        assert answer.status_code == 500
        assert "An unexpected error occurred." in answer.text
        for inside in ("Traceback", "RuntimeError", "this view fails", "hunter2", "application.py"):
            assert inside not in answer.text
        server.send()
        assert await server.wait_for_exit() == 0
    (problem,) = server.problems()
    event = json.loads(problem)
    assert "RuntimeError: this view fails" in event["exception"]
    assert server.events("forged") == []
    assert event["request_id"] == answer.headers["X-Request-ID"]
    assert "hunter2" not in server.output


async def test_input_is_not_shown_or_logged_after_an_error() -> None:
    sent = {"password": "hunter2", "token": "a-token-in-the-form"}
    async with (
        serving(1, **UPSUN, **DEBUG) as server,
        httpx.AsyncClient(base_url=server.url, params={"password": "hunter2"}) as client,
    ):
        answers = [
            await client.get("/crash/a-token-in-the-path"),
            await client.post("/crash/a-token-in-the-path", data=sent),
        ]
        server.send()
        assert await server.wait_for_exit() == 0
    for answer in answers:
        assert answer.status_code == 500
        assert "An unexpected error occurred." in answer.text
        for inside in ("Traceback", "ValueError", "application.py", "hunter2", "a-token"):
            assert inside not in answer.text
    first, second = map(json.loads, server.problems())
    for event, method in ((first, "GET"), (second, "POST")):
        assert event["event"] == "unhandled exception"
        assert (event["method"], event["route"]) == (method, "/crash/<token>")
    assert "ValueError: cannot use '[hidden]'" in second["exception"]
    for secret in ("hunter2", "a-token"):
        assert secret not in server.output


async def handshake(server: Server, *headers: str) -> tuple[int, dict[str, str]]:
    """Send a WebSocket handshake; return the status and headers of the response."""
    connection = await Connection.to(server)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key]
    await connection.send("\r\n".join(["GET /echo HTTP/1.1", *headers, *upgrade, "", ""]).encode())
    answer = await connection.read_head()
    await connection.close()
    return answer


async def test_cross_site_websocket_handshakes_are_rejected() -> None:
    """Browsers let any page open a WebSocket to any site, with the cookies of that site."""
    routes = {"https://www.example.com/": {"primary": True, "type": "upstream", "upstream": "app"}}
    routed = {**UPSUN, "PLATFORM_ROUTES": base64.b64encode(json.dumps(routes).encode()).decode()}
    own, secure = "Host: www.example.com", "X-Forwarded-Proto: https"
    async with serving(1, **routed) as server:
        for status, *headers in (
            (101, own, secure, "Origin: https://www.example.com"),
            (101, own, secure, "Sec-Fetch-Site: same-origin"),
            (101, own, secure),  # not a browser
            (403, own, secure, "Origin: https://evil.example"),
            (403, own, secure, "Origin: http://www.example.com"),
            (403, own, secure, "Origin: null"),
            (403, own, secure, "Sec-Fetch-Site: same-site", "Origin: https://www.example.com"),
            (400, "Host: evil.example", secure, "Origin: https://evil.example"),
        ):
            answered, received = await handshake(server, *headers)
            assert answered == status, headers
            if status != 101:
                assert received["x-request-id"]
                assert received["strict-transport-security"]
                for name, value in SECURITY_HEADERS.items():
                    assert received[name.lower()] == value
        # The server is not stopped gracefully: Hypercorn keeps an open WebSocket until the next
        # ping, 20 seconds after the handshake.


async def test_http_2_is_rejected() -> None:
    """With HTTP/2 a client could bypass the router and set trusted headers itself."""
    async with serving(1, **UPSUN) as server:
        connection = await Connection.to(server)
        http = H2Connection()
        http.initiate_connection()
        request = {":method": "GET", ":path": "/origin", ":scheme": "http", ":authority": "a"}
        http.send_headers(1, [*request.items(), ("x-client-ip", "192.0.2.7")], end_stream=True)
        await connection.send(http.data_to_send())
        answer = None
        while answer is None:
            events = http.receive_data(await connection.reader.read(65536))
            answer = next((each for each in events if isinstance(each, ResponseReceived)), None)
        await connection.close()
        assert dict(answer.headers)[b":status"] == b"505"
        await server.stop_cleanly()


@PROCESSES
@PREFIXES
async def test_every_log_line_of_a_request_has_its_id(processes: int, prefix: str) -> None:
    async with (
        serving(processes) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        answers = await asyncio.gather(
            *(client.get(f"{prefix}/log/{number}") for number in range(20)),
            client.get(f"{prefix}/log/{quote(FORGED)}", headers={"X-Request-ID": "forged"}),
        )
        await server.stop_cleanly()
    ids = [answer.headers["X-Request-ID"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert "forged" not in ids
    logged = {event["request_id"]: event["text"] for event in server.events("logged")}
    assert [logged[request_id] for request_id in ids[:20]] == [str(number) for number in range(20)]
    assert "forged" in logged[ids[20]]
    assert server.events("forged") == []
    assert "\x1b" not in server.output
    # Lines outside requests have no request id.
    assert all("request_id" not in event for event in server.events("server stopped"))
