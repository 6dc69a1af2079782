"""Live events over real connections, with disconnects, slow clients and shutdowns.

`python -m quart_upsun.tests.process.test_live [name=value]...` is the server of these tests: the
sample application with a public stream for each user. The arguments set attributes of its hub.
"""

import asyncio
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psutil
from quart import Quart, Response, jsonify
from sqlalchemy import text

from quart_upsun.current import current_toolkit
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.live.events import MAX_EVENT_BYTES, publish
from quart_upsun.live.views import stream
from quart_upsun.server import serve as server
from quart_upsun.server.serve import CANCEL_SECONDS
from quart_upsun.testing.servers import Connection, Server, serving
from quart_upsun.tests.conftest import add_user
from quart_upsun.tests.sample import create_app
from quart_upsun.tests.sample.settings import Settings, load
from quart_upsun.tests.test_live import Message, Parser, count_listeners, event_ids, publish_numbers

NAME = "quart_upsun.tests.process.test_live"


def factory(settings: Settings) -> Quart:
    app = create_app(settings)
    for argument in sys.argv[1:]:
        name, value = argument.split("=")
        setattr(app.extensions["quart_upsun"].live, name, float(value))

    async def view(user_id: int) -> Response:
        return await stream(user_id)

    async def count() -> Response:
        streams = current_toolkit().live._all()
        return jsonify(open=len(streams), sending=sum(not each.is_waiting for each in streams))

    app.add_url_rule("/stream/<int:user_id>", view_func=view)
    app.add_url_rule("/streams", view_func=count)
    return app


class Page:
    """A client with an open stream, which resumes after its last event."""

    def __init__(self, server: Server, user_id: int, last: int | None = None) -> None:
        self.server = server
        self.user_id = user_id
        self.last = last
        self.seen: list[Message] = []

    async def open(self) -> None:
        self.parser = Parser()
        self.connection = await Connection.to(self.server)
        headers = [] if self.last is None else [f"Last-Event-ID: {self.last}"]
        await self.connection.get(f"/stream/{self.user_id}", *headers)
        status, fields = await self.connection.read_head()
        assert (status, fields["content-type"]) == (200, "text/event-stream; charset=utf-8")

    async def read(self) -> bool:
        """Read the next chunk; return False at the end of the response."""
        size = int(await self.connection.reader.readline() or b"0", 16)
        if size == 0:
            return False
        for message in self.parser.feed((await self.connection.reader.readexactly(size + 2))[:-2]):
            self.last = message.id
            self.seen.append(message)
        return True

    def cut(self) -> None:
        """Abort the connection."""
        self.connection.writer.transport.abort()


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    database = Database(parse_database_url(url), pool_size=4)
    yield database
    await database.close()


async def has_streams(server: Server, count: int, kind: str = "open") -> None:
    """Wait until `count` streams are open, or sending."""
    deadline = time.monotonic() + 30
    async with httpx.AsyncClient(base_url=server.url) as client:
        while (found := (await client.get("/streams")).json()[kind]) != count:
            assert time.monotonic() < deadline, f"{found} streams instead of {count}"
            await asyncio.sleep(0.02)


async def test_no_event_is_lost_over_disconnects_and_shutdown(database_url: str) -> None:
    """Clients of two processes disconnect and resume; each receives every event once, in order."""
    total, pages = 200, 8
    async with (
        open_database(database_url) as database,
        serving(2, NAME, DATABASE_URL=database_url) as server,
    ):
        user, other = await add_user(database, "ada"), await add_user(database, "other")
        await publish_numbers(database, user, 0)
        (start,) = await event_ids(database, user)

        async def publish_all() -> None:
            for number in range(total):
                await publish_numbers(database, user, number)
                await publish_numbers(database, other, number)

        async def read_all(seed: int) -> Page:
            dice = random.Random(seed)  # noqa: S311
            page = Page(server, user, start)
            while len(page.seen) < total:
                await page.open()
                for _ in range(dice.randint(1, 60)):
                    if len(page.seen) < total:
                        await page.read()
                page.cut()
            return page

        async with asyncio.TaskGroup() as group:
            group.create_task(publish_all())
            tasks = [group.create_task(read_all(seed)) for seed in range(pages)]
        read = [task.result() for task in tasks]
        expected = (await event_ids(database, user))[1:]
        assert len(expected) == total
        for page in read:
            assert [message.id for message in page.seen] == expected
        assert await count_listeners(database) == 2  # one per process

        for page in read:
            await page.open()
        server.send()
        stopped = time.monotonic()
        for page in read:
            while await page.read():
                pass
            await page.connection.close()
        assert time.monotonic() - stopped < CANCEL_SECONDS
        assert await server.wait_for_exit() == 0
        assert server.problems() == []
        assert await count_listeners(database) == 0


async def test_a_client_that_does_not_read_is_dropped(database_url: str) -> None:
    """It is dropped, uses little memory, and delays neither other clients nor the shutdown."""
    total = 1200
    async with (
        open_database(database_url) as database,
        serving(1, NAME, "read_timeout_seconds=4", "tick=0.1", DATABASE_URL=database_url) as server,
    ):
        user = await add_user(database, "ada")
        (process,) = map(psutil.Process, server.pids())
        quick = Page(server, user)
        await quick.open()
        slow = await unread(server, user)
        await has_streams(server, 2)
        while not quick.seen:
            await quick.read()
        before = process.memory_info().rss

        async def publish_all() -> None:
            filling = "x" * (MAX_EVENT_BYTES - 100)
            for first in range(0, total, 10):
                async with database.write() as session:
                    for number in range(first, first + 10):
                        await publish(session, user, "number", n=number, filling=filling)

        async def read_all() -> None:
            while len(quick.seen) < total + 1:
                await quick.read()

        await asyncio.gather(publish_all(), read_all())
        sent = await event_ids(database, user)
        assert [message.id for message in quick.seen[1:]] == sent
        grown = (process.memory_info().rss - before) / 1e6
        assert grown < 10, f"{grown} MB more after sending {total * MAX_EVENT_BYTES / 1e6} MB"
        await server.wait_for_event("slow streams dropped")
        await has_streams(server, 1)
        assert await asyncio.to_thread(is_reset, slow)
        await quick.connection.close()
        await server.stop_cleanly()

        # Two clients that do not read when the process stops, long before the read timeout.
        async with serving(
            1, NAME, "read_timeout_seconds=600", "tick=0.1", DATABASE_URL=database_url
        ) as other:
            quick = Page(other, user)
            await quick.open()
            hung = [await unread(other, user, after=sent[-400]) for _ in range(2)]
            await has_streams(other, 2, "sending")
            other.send()
            while await quick.read():
                pass
            await quick.connection.close()
            assert await other.wait_for_exit() == 0
            assert other.problems() == []
            for each in hung:
                each.close()


async def unread(server: Server, user_id: int, after: int = 0) -> socket.socket:
    """Request a stream without reading it."""

    def connect() -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(
            f"GET /stream/{user_id}?after={after} HTTP/1.1\r\nHost: example.com\r\n\r\n".encode()
        )
        return client

    return await asyncio.to_thread(connect)


def is_reset(client: socket.socket) -> bool:
    """Read until the end; tell whether the server has reset the connection."""
    client.settimeout(10)
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        return True
    finally:
        client.close()
    return False


async def test_streams_of_disconnected_clients_are_removed(database_url: str) -> None:
    """After an abort and a normal close; all streams share one database connection."""
    async with (
        open_database(database_url) as database,
        serving(1, NAME, "heartbeat=0.2", "tick=0.05", DATABASE_URL=database_url) as server,
    ):
        user = await add_user(database, "ada")
        pages = [Page(server, user) for _ in range(20)]
        for page in pages:
            await page.open()
        refused = await Connection.to(server)
        await refused.get(f"/stream/{user}")
        assert (await refused.read_head())[0] == 429
        await refused.close()
        for page in pages:
            while not (page.seen and page.parser.heartbeats > 1):
                await page.read()
        assert await count_listeners(database) == 1
        for page in pages[:10]:
            page.cut()
        await has_streams(server, 10)
        for page in pages[10:]:
            await page.connection.close()
        await has_streams(server, 0)
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'quart-upsun' AND state <> 'idle'"
        )
        async with database.read() as session:
            assert await session.scalar(query) == 1  # this query
        await server.stop_cleanly()


if __name__ == "__main__":
    sys.exit(server.main(factory, load))
