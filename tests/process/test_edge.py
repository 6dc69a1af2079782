"""What the router tells is believed on Upsun only; what leaves the process holds no secret."""

import asyncio
import json
import socket
from http.cookies import SimpleCookie
from urllib.parse import quote

import httpx
import pytest
from hypercorn.config import Config

from app.server import hypercorn_config
from tests.features.factories import Person
from tests.process.servers import UPSUN, serving

FORGED = 'first\n{"event":"forged"}\r\n\x1b[2J'
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


@PROCESSES
async def test_cookies_on_upsun(processes: int, database_url: str) -> None:
    person = Person()
    routed = {"Host": "www.example.com", "X-Forwarded-Proto": "https", "X-Client-IP": "192.0.2.7"}
    async with (
        serving(processes, "app.server", DATABASE_URL=database_url, **UPSUN) as server,
        httpx.AsyncClient(base_url=server.url, headers=routed) as client,
    ):
        anonymous = await client.get("/")
        assert anonymous.status_code == 200
        assert "set-cookie" not in anonymous.headers
        registered = await client.post("/register/", data=person.registration)
        assert registered.status_code == 303
        form = {"username": person.username, "password": person.password}
        logged_in = await client.post("/login/", data=form)
        assert logged_in.status_code == 303
        await server.stops()
    cookies = SimpleCookie()
    for answer in (registered, logged_in):
        for header in answer.headers.get_list("set-cookie"):
            cookies.load(header)
    assert set(cookies) == {"__Host-session", "__Host-login"}
    for cookie in cookies.values():
        assert cookie["secure"]
        assert cookie["httponly"]
        assert cookie["samesite"] == "Lax"
        assert cookie["path"] == "/"
        assert not cookie["domain"]


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
    assert all("request_id" not in event for event in server.events("stopped"))
