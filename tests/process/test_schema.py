"""A release that starts before its migration waits for it and then serves."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import httpx
import pytest
from sqlalchemy import make_url, text

from app.settings import ROOT
from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.database.session import POOL_TIMEOUT_SECONDS
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.servers import Server, migrate, serving
from tests.features.factories import Person

_numbers = count(1)


async def log_in(client: httpx.AsyncClient) -> httpx.Response:
    # A new user name each time, because login attempts are limited per account.
    form = {"username": f"user{next(_numbers)}", "password": "wrong"}
    return await client.post("/login/", data=form)


@pytest.mark.parametrize("processes", [1, 2])
async def test_requests_get_503_until_an_empty_database_is_migrated(
    processes: int, empty_database: str
) -> None:
    async with (
        serving(processes, "app.server", DATABASE_URL=empty_database) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        pids = server.pids()
        await assert_unavailable(server, client)
        assert 1 <= len(server.events("schema behind")) <= processes

        await migrate(empty_database)
        ready = await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
        assert {answer.status_code for answer in ready} == {200}, server.output
        # More than the connections in all pools, so that each is used.
        pages = await asyncio.gather(*(log_in(client) for _ in range(20)))
        assert {page.status_code for page in pages} == {200}, server.output
        person = Person("newcomer")
        assert (await client.post("/register/", data=person.registration)).status_code == 303
        form = {"username": person.username, "password": person.password}
        assert (await client.post("/login/", data=form)).status_code == 303
        members = await asyncio.gather(*(client.get("/users/") for _ in range(20)))
        assert {page.status_code for page in members} == {200}, server.output

        assert server.pids() == pids
        await server.stop_cleanly()


async def test_the_schema_is_checked_without_requests(empty_database: str) -> None:
    """Requests that a deploy has held arrive at once, and must not wait for a connection."""
    async with serving(2, "app.server", DATABASE_URL=empty_database) as server:
        await server.wait_for_event("schema behind", times=2)
        await migrate(empty_database)
        await server.wait_for_event("schema ready", times=2)
        await server.stop_cleanly()


async def assert_unavailable(server: Server, client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/")).status_code == 200
    readiness = await client.get("/readyz")
    assert readiness.status_code == 503
    reason = readiness.json()
    assert (reason["reason"], reason["database"]) == ("schema", None)
    assert reason["needed"] == head()
    for page in await asyncio.gather(*(log_in(client) for _ in range(10))):
        assert page.status_code == 503
        assert int(page.headers["Retry-After"]) > 0
        assert page.elapsed.total_seconds() < 1
        assert "temporarily unavailable" in page.text
    assert server.problems() == []


def head() -> str:
    """Return Alembic's head revision."""
    result = subprocess.run(
        [sys.executable, "-m", "alembic", "heads"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()[0]


@asynccontextmanager
async def relay(url: str, flows: asyncio.Event) -> AsyncIterator[str]:
    """Run a proxy to a database that forwards bytes only while `flows` is set; yield its URL."""
    address = make_url(url)
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await flows.wait()
            writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_connection(address.host, address.port)
        tasks.add(asyncio.create_task(pump(reader, out)))
        tasks.add(asyncio.create_task(pump(back, writer)))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield address.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    server.close()
    await asyncio.wait(tasks, timeout=5)


async def test_the_schema_check_times_out(database_url: str) -> None:
    """The connections of the database stay open, but it does not answer."""
    flows = asyncio.Event()
    flows.set()
    async with relay(database_url, flows) as url:
        database = Database(parse_database_url(url), pool_size=2, migrations=ROOT / "alembic")

        async def query() -> None:
            async with database.read() as session:
                await session.execute(text("SELECT 1"))

        await asyncio.gather(query(), query())
        flows.clear()
        database.gate.close()
        started = time.monotonic()
        errors = await asyncio.gather(*(query() for _ in range(5)), return_exceptions=True)
        # One after the other, they would take five times as long.
        assert time.monotonic() - started < 4 * POOL_TIMEOUT_SECONDS
        assert all(isinstance(error, DatabaseUnavailableError) for error in errors), errors

        flows.set()
        await asyncio.sleep(0.3)  # longer than the gate caches its state
        await asyncio.gather(*(query() for _ in range(5)))
        await database.close()


async def test_connecting_may_take_longer_than_the_pool_timeout(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connecting is slow when the process is short of CPU, for instance during a deploy."""
    monkeypatch.setattr("quart_upsun.database.session.POOL_TIMEOUT_SECONDS", 0.05)
    flows = asyncio.Event()
    async with relay(database_url, flows) as url:
        database = Database(parse_database_url(url), pool_size=1, migrations=ROOT / "alembic")
        asyncio.get_running_loop().call_later(0.3, flows.set)
        await database.gate.check()
        await database.close()
