"""What the router tells is believed on Upsun only; what leaves the process holds no secret."""

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
# Everything that turns a traceback page on somewhere.
DEBUG = dict.fromkeys(("FLASK_DEBUG", "QUART_DEBUG", "QUART_TESTING", "TESTING", "DEBUG"), "1")
PROCESSES = pytest.mark.parametrize("processes", [1, 2])


def test_hypercorn_knows_every_option() -> None:
    """It accepts unknown ones in silence."""
    with socket.socket() as listener:
        config = hypercorn_config(listener.fileno())
    assert [name for name in vars(config) if not hasattr(Config, name)] == []


@PROCESSES
@pytest.mark.parametrize("platform", [{}, UPSUN], ids=["laptop", "upsun"])
async def test_only_the_router_is_believed(processes: int, platform: dict[str, str]) -> None:
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
        origin = (await client.get("/origin", headers=headers)).json()
        plain = (await client.get("/origin", headers={"Host": "www.example.com"})).json()
        await server.stops()
    direct = {"address": "127.0.0.1", "scheme": "http", "host": "www.example.com"}
    routed = {"address": "192.0.2.7", "scheme": "https", "host": "www.example.com"}
    assert origin == (routed if platform else direct)
    assert plain == direct


async def test_the_public_origin_is_not_believed_in_place_of_the_routes_on_upsun() -> None:
    """A `PUBLIC_ORIGIN` for the whole project is that of production, also in its previews."""
    variables = {**UPSUN, "PUBLIC_ORIGIN": "https://production.example"}
    async with (
        serving(1, **variables) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        headers = {"Host": "preview.example", "Origin": "https://production.example"}
        assert (await client.post("/quick", headers=headers)).status_code == 403


@PROCESSES
async def test_a_failing_view_shows_nothing_on_upsun(processes: int) -> None:
    variables = {**UPSUN, "PLATFORM_ENVIRONMENT_TYPE": "development", "FLASK_DEBUG": "1"}
    async with (
        serving(processes, **variables) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        answer = await client.get(
            f"/error/{quote(FORGED)}?name=hunter2", headers={"Referer": "/?name=hunter2"}
        )
        assert answer.status_code == 500
        assert "Something went wrong on our side." in answer.text
        for inside in ("Traceback", "RuntimeError", "this view fails", "hunter2", "application.py"):
            assert inside not in answer.text
        server.send()
        assert await server.ended() == 0
    (problem,) = server.problems()
    event = json.loads(problem)
    assert "RuntimeError: this view fails" in event["exception"]
    assert server.events("forged") == []
    assert event["request_id"] == answer.headers["X-Request-ID"]
    assert "hunter2" not in server.output


async def test_nothing_that_was_sent_is_shown_or_logged_on_upsun() -> None:
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
        assert await server.ended() == 0
    for answer in answers:
        assert answer.status_code == 500
        assert "Something went wrong on our side." in answer.text
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
    """Ask for a WebSocket, and return what is answered."""
    connection = await Connection.to(server)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key]
    await connection.send("\r\n".join(["GET /echo HTTP/1.1", *headers, *upgrade, "", ""]).encode())
    answer = await connection.head()
    await connection.close()
    return answer


async def test_handshakes_of_other_sites_and_hosts_are_refused() -> None:
    """The browser lets every page open a WebSocket to everywhere, with the cookies of there."""
    routes = {"https://www.example.com/": {"primary": True, "type": "upstream", "upstream": "app"}}
    routed = {**UPSUN, "PLATFORM_ROUTES": base64.b64encode(json.dumps(routes).encode()).decode()}
    own, secure = "Host: www.example.com", "X-Forwarded-Proto: https"
    async with serving(1, **routed) as server:
        for status, *headers in (
            (101, own, secure, "Origin: https://www.example.com"),
            (101, own, secure, "Sec-Fetch-Site: same-origin"),
            (101, own, secure),  # no browser
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
        # Not told to stop: Hypercorn holds a connection until the next ping, of which there would
        # be one 20 seconds after the handshake.


async def test_http_2_goes_past_no_router() -> None:
    """Through an upgraded connection a client would set the headers that are believed."""
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
        await server.stops()


@PROCESSES
async def test_every_line_of_a_request_bears_its_id(processes: int) -> None:
    async with (
        serving(processes) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        answers = await asyncio.gather(
            *(client.get(f"/say/{number}") for number in range(20)),
            client.get(f"/say/{quote(FORGED)}", headers={"X-Request-ID": "forged"}),
        )
        await server.stops()
    ids = [answer.headers["X-Request-ID"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert "forged" not in ids
    said = {event["request_id"]: event["words"] for event in server.events("said")}
    assert [said[request_id] for request_id in ids[:20]] == [str(number) for number in range(20)]
    assert "forged" in said[ids[20]]
    assert server.events("forged") == []
    assert "\x1b" not in server.output
    # Outside of requests there is none to bear.
    assert all("request_id" not in event for event in server.events("server stopped"))
