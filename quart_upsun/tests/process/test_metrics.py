"""The metrics of real server processes add up, and are complete after a graceful shutdown."""

import asyncio
from datetime import UTC, datetime

import httpx

from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.metrics.series import Span, read_last_hour
from quart_upsun.testing.servers import UPSUN
from quart_upsun.tests.process.application import serving

REQUESTS = 60


async def read_span(url: str) -> Span:
    database = Database(parse_database_url(url), pool_size=1)
    try:
        async with database.read() as session:
            return await read_last_hour(session, datetime.now(UTC))
    finally:
        await database.close()


async def test_processes_add_up(database_url: str) -> None:
    async with serving(2, DATABASE_URL=database_url) as server:
        pids: set[str] = set()
        # Without keep-alive, so that both processes get requests.
        async with httpx.AsyncClient(headers={"Connection": "close"}) as client:
            while len(pids) < 2:
                pids.add((await client.get(f"{server.url}/process")).text)
            for _ in range(REQUESTS // 10):
                await asyncio.gather(*(client.get(f"{server.url}/rows/") for _ in range(10)))
            await client.get(f"{server.url}/error/secret-value")
        await server.wait_for_event("unhandled exception")
        server.send()
        assert await server.wait_for_exit() == 0
    span = await read_span(database_url)
    routes = span.total.routes
    assert routes["GET /rows/"].requests == REQUESTS
    assert routes["GET /rows/"].queries >= REQUESTS
    assert routes["GET /error/<name>"].errors == 1
    assert span.processes == 2
    assert "secret-value" not in str(span)


async def test_release_is_a_deploy(database_url: str) -> None:
    async with serving(1, DATABASE_URL=database_url, **UPSUN) as server:
        async with httpx.AsyncClient() as client:
            await client.get(f"{server.url}/rows/")
        await server.stop_cleanly()
    assert [each.release for each in (await read_span(database_url)).deploys] == ["1f3a"]
