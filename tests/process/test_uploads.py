"""Large uploads and downloads: limits, memory use and broken connections."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import httpx
import psutil
import pytest
from sqlalchemy import text

from app.bookmarks.uploads import MAX_FILE_BYTES
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.http.bodies import MAX_BUFFERED_BYTES
from quart_upsun.testing.servers import Connection, Server, serving
from tests.features.factories import Person

PIECE = b"x" * 65536
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.html"\r\n\r\n'
END = b"\r\n--b--\r\n"
KIND = {"Content-Type": "multipart/form-data; boundary=b"}


async def form(size: int) -> AsyncIterator[bytes]:
    """Yield a form with a file of `size` bytes in chunks."""
    yield HEAD
    for _ in range(size // len(PIECE)):
        yield PIECE
    yield b"x" * (size % len(PIECE))
    yield END


@asynccontextmanager
async def logged_in(url: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient, Database, Person]]:
    database = Database(parse_database_url(url), pool_size=2)
    person = await Person().create(database)
    async with (
        serving(1, "app.server", DATABASE_URL=url, RUN_JOBS="0") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        answer = await client.post("/login/", data=person.login)
        assert answer.status_code == 303
        yield server, client, database, person
    await database.close()


async def count_rows(database: Database) -> tuple[int, int]:
    counts = text(
        "SELECT (SELECT count(*) FROM link_imports), (SELECT count(*) FROM link_import_chunks)"
    )
    async with database.read() as session:
        imports, chunks = (await session.execute(counts)).one()
    return imports, chunks


async def until(database: Database, condition: Callable[[tuple[int, int]], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition(await count_rows(database)):  # noqa: ASYNC110 the condition is in the database
            await asyncio.sleep(0.02)


async def test_uploads_are_limited_and_not_kept_in_memory(database_url: str) -> None:
    async with logged_in(database_url) as (server, client, database, _):
        (pid,) = server.pids()
        before = psutil.Process(pid).memory_info().rss
        # In chunks, so that the size is unknown in advance.
        answer = await client.post("/links/import/", content=form(MAX_FILE_BYTES + 1), headers=KIND)
        assert answer.status_code == 413
        assert await count_rows(database) == (0, 0)
        # With a Content-Length, the body is not read at all.
        size = str(MAX_FILE_BYTES + 10**6)
        connection = await Connection.to(server)
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        await connection.send(
            f"POST /links/import/ HTTP/1.1\r\nHost: a\r\nCookie: {cookies}\r\n"
            f"Content-Length: {size}\r\nContent-Type: {KIND['Content-Type']}\r\n\r\n".encode()
        )
        status, _headers, _body = await connection.read_response()
        assert status == 413
        await connection.close()
        # The limit of other routes is unchanged.
        answer = await client.post("/links/", content=form(2**20), headers=KIND)
        assert answer.status_code == 413
        answer = await client.post("/links/import/", content=form(MAX_FILE_BYTES), headers=KIND)
        assert answer.status_code == 303
        assert await count_rows(database) == (1, 128)
        grown = psutil.Process(pid).memory_info().rss - before
        assert grown < MAX_FILE_BYTES / 2 > MAX_BUFFERED_BYTES, f"{grown / 2**20:.0f} MB"
        await server.stop_cleanly()


async def test_an_interrupted_upload_leaves_no_rows(database_url: str) -> None:
    async with logged_in(database_url) as (server, client, database, _):
        cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        connection = await Connection.to(server)
        await connection.send(
            f"POST /links/import/ HTTP/1.1\r\nHost: a\r\nCookie: {cookies}\r\n"
            f"Content-Length: 9999999\r\nContent-Type: {KIND['Content-Type']}\r\n\r\n".encode()
            + HEAD
        )
        for _ in range(32):
            await connection.send(PIECE)
        await until(database, lambda found: found[1] >= 4)
        await connection.close()
        await until(database, lambda found: found == (0, 0))
        await server.stop_cleanly()


async def test_an_anonymous_upload_is_rejected(database_url: str) -> None:
    """An unread body delays neither the response nor the end of the connection."""
    async with logged_in(database_url) as (server, _, database, _person):
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as anonymous:
            answer = await anonymous.post(
                "/links/import/", content=form(MAX_FILE_BYTES), headers=KIND
            )
        assert answer.status_code == 401
        assert await count_rows(database) == (0, 0)
        await server.stop_cleanly()


async def test_an_interrupted_export_is_an_error(database_url: str) -> None:
    fill = text(
        """
        INSERT INTO links (user_id, url, description)
        SELECT :user_id, 'https://example.com/' || number, repeat('x', 1000)
        FROM generate_series(1, 20000) AS number
        """
    )
    async with logged_in(database_url) as (server, client, database, person):
        async with database.write() as session:
            await session.execute(fill, {"user_id": person.id})
        connection = await asyncpg.connect(database_url)
        received = 0
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
            async with client.stream("GET", "/links/export.jsonl") as answer:
                assert answer.status_code == 200
                async for piece in answer.aiter_bytes():
                    if not received:
                        transaction = connection.transaction()
                        await transaction.start()
                        await connection.execute("LOCK TABLE links IN ACCESS EXCLUSIVE MODE")
                    received += len(piece)
        await transaction.rollback()
        await connection.close()
        assert 0 < received < 20_000_000
        answer = await client.get("/links/export.jsonl")
        assert len(answer.text.splitlines()) == 20000
        server.send()
        assert await server.wait_for_exit() == 0
