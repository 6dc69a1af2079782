"""Live events: order, delivery, resuming, cleanup and limits of streams."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import pytest
from quart import Quart, Response
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.database import Database, connect
from quart_upsun.database.url import parse_database_url
from quart_upsun.jobs.queue import JobContext
from quart_upsun.live import events, history, listener
from quart_upsun.live import stream as streams
from quart_upsun.live.events import delete_old_events, publish
from quart_upsun.live.history import StreamPosition, StreamStart
from quart_upsun.live.hub import Hub
from quart_upsun.live.listener import APPLICATION_NAME
from quart_upsun.live.stream import Stream
from quart_upsun.live.views import stream
from quart_upsun.tests.conftest import add_user
from quart_upsun.tests.sample import create_app
from quart_upsun.tests.sample.settings import Settings

TIMEOUT_SECONDS = 15.0  # generous: on an idle machine events arrive within milliseconds


class Message(NamedTuple):
    """An event as a browser receives it."""

    id: int
    kind: str
    data: str


class Parser:
    """Parses a stream like a browser's EventSource."""

    def __init__(self) -> None:
        self.heartbeats = 0
        self.retry = 0
        self._rest = ""

    def feed(self, data: bytes) -> list[Message]:
        """Return the complete events."""
        *blocks, self._rest = (self._rest + data.decode()).split("\n\n")
        messages = []
        for block in blocks:
            if block == ":":
                self.heartbeats += 1
                continue
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            if set(fields) == {"retry"}:
                self.retry = int(fields["retry"])
                continue
            assert set(fields) == {"id", "event", "data"}, block
            messages.append(Message(int(fields["id"]), fields["event"], fields["data"]))
        return messages


class Browser:
    """A client with an open stream of the application in this process."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.parser = Parser()
        self._messages: list[Message] = []

    async def message(self) -> Message:
        """Wait for the next event."""
        while not self._messages:
            await self.read()
        return self._messages.pop(0)

    async def read(self) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            self._messages += self.parser.feed(await self.connection.receive())

    async def numbers(self, count: int) -> list[int]:
        """Wait for `count` events, and return their numbers."""
        messages = [await self.message() for _ in range(count)]
        return [int(message.data.split(":")[1].rstrip("}")) for message in messages]


@asynccontextmanager
async def browsing(app: Quart, path: str, **headers: str) -> AsyncIterator[Browser]:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    connection = app.test_client().request(path, headers=fields)
    async with connection:
        await connection.send_complete()
        try:
            yield Browser(connection)
        finally:
            await connection.disconnect()


async def eventually(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)
    raise AssertionError(what)


# The creation time of users that `make_older` has changed.
created_at: dict[int, datetime] = {}


def with_streams(settings: Settings) -> Quart:
    app = create_app(settings)
    created_at.clear()

    async def view(user_id: int) -> Response:
        return await stream(user_id, user_since=created_at.get(user_id, datetime.now(UTC)))

    app.add_url_rule("/stream/<int:user_id>", view_func=view)
    return app


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    app = with_streams(settings)
    async with app.test_app():
        yield app
        # Every test must leave no stream behind.
        hub = hub_of(app)
        await eventually(lambda: len(hub) == 0, "end of all streams")
        assert [*hub._streams, *hub._due, *hub._opening] == []


def hub_of(app: Quart) -> Hub:
    hub: Hub = app.extensions["quart_upsun"].live
    return hub


async def publish_numbers(database: Database, user_id: int, *numbers: int) -> None:
    """Publish an event for each number, in one transaction."""
    async with database.write() as session:
        for number in numbers:
            await publish(session, user_id, "number", n=number)


async def event_ids(database: Database, user_id: int) -> list[int]:
    query = text("SELECT id FROM live_events WHERE user_id = :user ORDER BY id")
    async with database.read() as session:
        return [*await session.scalars(query, {"user": user_id})]


async def count_listeners(database: Database) -> int:
    """Return the number of connections that listen for live events."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = :name"
    )
    async with database.read() as session:
        number: int = await session.scalar(query, {"name": APPLICATION_NAME})
    return number


async def make_older(database: Database, user_id: int, days: int) -> None:
    """Make a user and the user's events older."""
    created_at[user_id] = datetime.now(UTC) - timedelta(days=days)
    async with database.write() as session:
        await session.execute(
            text(
                "UPDATE live_events SET created_at = created_at - make_interval(days => :days)"
                " WHERE user_id = :user"
            ),
            {"days": days, "user": user_id},
        )


async def test_an_event_is_sent_after_the_commit(app: Quart, database: Database, user: int) -> None:
    async with browsing(app, f"/stream/{user}") as page:
        hello = await page.message()
        assert hello == Message(0, "hello", "{}")
        assert 1000 <= page.parser.retry <= 3000
        headers = page.connection.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Cache-Control"] == "private, no-store"
        assert "Content-Length" not in headers
        with suppress(ZeroDivisionError):
            async with database.write() as session:
                await publish(session, user, "number", n=1)
                raise ZeroDivisionError
        async with database.write() as session:
            await publish(session, user, "link.saved", title="a\nb\r\u2028ü", ids=[1, 2])
            await session.commit()
        message = await page.message()
        assert (message.id, message.kind) == ((await event_ids(database, user))[0], "link.saved")
        assert message.data == '{"ids": [1, 2], "title": "a\\nb\\r\u2028ü"}'
        assert hub_of(app)._opening == {}


async def test_publish_rejects_invalid_events(database: Database, user: int) -> None:
    kinds = ["", "a\nb", "A", "k" * 41, "hello", "reset", "error"]
    data: list[dict[str, Any]] = [{"text": "ü" * 8200}, {"number": float("nan")}]
    async with database.write() as session:
        for kind, content in [*((kind, {}) for kind in kinds), *(("fine", each) for each in data)]:
            with pytest.raises(ValueError, match=r"event|JSON"):
                await publish(session, user, kind, **content)
    assert await event_ids(database, user) == []


async def test_ids_have_the_order_of_commits(database: Database, user: int) -> None:
    """The second publisher waits before its id is generated; other users do not wait."""
    other = await add_user(database, "other")

    async def is_waiting() -> bool:
        query = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        async with database.read() as session:
            return bool(await session.scalar(query))

    async with database.write() as first:
        await publish(first, user, "number", n=1)
        second = asyncio.create_task(publish_numbers(database, user, 3))
        await eventually(is_waiting, "waiting second transaction")
        await publish_numbers(database, other, 0)
        # If the second had generated its id before it waited, this id would be larger.
        await publish(first, user, "number", n=2)
    await second
    async with database.write() as early:  # starts before the next event and publishes after it
        await early.execute(text("SELECT 1"))
        await publish_numbers(database, user, 4)
        await publish(early, user, "number", n=5)
    query = text("SELECT CAST(data ->> 'n' AS int) FROM live_events WHERE user_id = :user ORDER BY")
    async with database.read() as session:
        for order in ("id", "created_at"):
            ordered = await session.scalars(text(f"{query.text} {order}"), {"user": user})
            assert ordered.all() == [1, 2, 3, 4, 5]


async def test_a_stream_has_only_events_of_its_user(
    app: Quart, database: Database, user: int
) -> None:
    other = await add_user(database, "other")
    async with (
        browsing(app, f"/stream/{user}") as page,
        browsing(app, f"/stream/{other}?after=0") as another,
        browsing(app, f"/stream/{user}?after=0") as third,
    ):
        await page.message()
        for number in range(20):
            await publish_numbers(database, (user, other)[number % 2], number)
        assert await page.numbers(10) == [*range(0, 20, 2)]
        assert await third.numbers(10) == [*range(0, 20, 2)]
        assert await another.numbers(10) == [*range(1, 20, 2)]


async def test_a_stream_resumes_after_the_last_event(
    app: Quart, database: Database, user: int
) -> None:
    await publish_numbers(database, user, 0, 1, 2)
    first, second, third = await event_ids(database, user)
    path = f"/stream/{user}"

    async def starts_with(query: str, *expected: int, **headers: str) -> None:
        async with browsing(app, path + query, **headers) as page:
            if not expected:
                assert await page.message() == Message(third, "hello", "{}")
            else:
                assert await page.numbers(len(expected)) == [*expected]

    await starts_with("", 1, 2, Last_Event_ID=str(first))
    await starts_with(f"?after={second}", 2)
    await starts_with(f"?after={second}", 1, 2, Last_Event_ID=str(first))  # the header wins
    await starts_with("?after=0", 0, 1, 2)  # a new user
    for bad in ("", "-1", "1.5", "x", "%D9%A3", "9" * 19, "1 "):
        await starts_with(f"?after={bad}")
    await starts_with(f"?after={first}", Last_Event_ID="none")

    async with browsing(app, f"{path}?after={third}") as page:
        await publish_numbers(database, user, 3)
        assert await page.numbers(1) == [3]


async def test_a_stream_is_reset_after_too_many_missed_events(
    app: Quart, database: Database, user: int
) -> None:
    path = f"/stream/{user}?after="

    async def is_reset(after: int) -> None:
        async with browsing(app, f"{path}{after}") as page:
            newest = (await event_ids(database, user))[-1]
            assert await page.message() == Message(newest, "reset", "{}")
            await publish_numbers(database, user, -1)
            assert await page.numbers(1) == [-1]

    await publish_numbers(database, user, *range(history.MAX_REPLAYED_EVENTS + 1))
    first, second, *_, last = await event_ids(database, user)
    async with browsing(app, f"{path}{first}") as page:
        assert await page.numbers(history.MAX_REPLAYED_EVENTS) == [
            *range(1, history.MAX_REPLAYED_EVENTS + 1)
        ]
    await is_reset(0)
    await is_reset(last + 1000)  # the database was replaced by an older one

    await make_older(database, user, 2)
    await publish_numbers(database, user, 7)
    (last,) = (await event_ids(database, user))[-1:]
    await clean_up(database)
    assert await event_ids(database, user) == [last]
    await is_reset(second)
    await is_reset(0)


async def clean_up(database: Database) -> None:
    await delete_old_events(JobContext(id=1, data={}, attempt=1, database=database))


async def test_a_stream_that_has_missed_nothing_is_not_reset(
    app: Quart, database: Database, user: int
) -> None:
    """Also after a long time without events."""
    await publish_numbers(database, user, 0)
    (last,) = await event_ids(database, user)
    await make_older(database, user, 30)
    await clean_up(database)
    assert await event_ids(database, user) == [last]
    idle = await add_user(database, "idle")
    await make_older(database, idle, 30)
    async with (
        browsing(app, f"/stream/{user}?after={last}") as page,
        browsing(app, f"/stream/{idle}?after=0") as other,
    ):
        hub = hub_of(app)
        await eventually(lambda: sum(each.is_open for each in hub._all()) == 2, "open streams")
        await publish_numbers(database, user, 1)
        await publish_numbers(database, idle, 2)
        assert await page.numbers(1) == [1]
        assert await other.numbers(1) == [2]


async def test_cleanup_runs_in_batches(
    database: Database, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CLEANUP_BATCH_SIZE", 3)
    other = await add_user(database, "other")
    for _ in range(5):
        await publish_numbers(database, user, 1, 2)
        await publish_numbers(database, other, 1)
    await make_older(database, user, 2)
    await make_older(database, other, 2)
    await publish_numbers(database, user, 3)
    with monkeypatch.context() as patch:
        patch.setattr(events, "RETENTION_DAYS", 3)
        await clean_up(database)
    assert len(await event_ids(database, user)) == 11
    assert len(await event_ids(database, other)) == 5
    await clean_up(database)
    assert len(await event_ids(database, user)) == 1
    assert len(await event_ids(database, other)) == 1


async def test_no_event_is_lost_when_clients_reconnect(
    app: Quart, database: Database, user: int
) -> None:
    """Clients reconnect while two tasks publish; each receives every event once, in order."""
    total = 150
    await publish_numbers(database, user, 0)
    (start,) = await event_ids(database, user)

    async def publish_all(numbers: range) -> None:
        for number in numbers:
            await publish_numbers(database, user, number)
            await asyncio.sleep(0)

    async def read_all(seed: int) -> list[int]:
        dice = random.Random(seed)  # noqa: S311
        last, seen = start, list[int]()
        while len(seen) < 2 * total:
            async with browsing(app, f"/stream/{user}", Last_Event_ID=str(last)) as page:
                for _ in range(min(dice.randint(0, 20), 2 * total - len(seen))):
                    message = await page.message()
                    seen.append(message.id)
                    last = message.id
        return seen

    *seen, _, _ = await asyncio.gather(
        *map(read_all, range(8)),
        publish_all(range(total)),
        publish_all(range(total)),
    )
    expected = (await event_ids(database, user))[1:]
    assert len(expected) == 2 * total
    for each in seen:
        assert each == expected


async def test_an_event_during_the_start_of_a_stream_is_sent(
    app: Quart, database: Database, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit comes after the query for the start, and before the stream is open."""
    fetch_starts = history.fetch_starts
    hub = hub_of(app)

    async def delayed(
        session: AsyncSession, positions: Sequence[StreamPosition]
    ) -> list[StreamStart]:
        starts = await fetch_starts(session, positions)
        await publish_numbers(database, user, 1)
        await eventually(lambda: user in hub._due, "notification")
        return starts

    async with browsing(app, f"/stream/{user}") as page:
        await page.message()  # the process now listens
        monkeypatch.setattr(history, "fetch_starts", delayed)
        async with browsing(app, f"/stream/{user}") as late:
            assert (await late.message()).kind == "hello"
            assert await late.numbers(1) == [1]
            assert await page.numbers(1) == [1]


async def test_all_streams_share_one_listening_connection(
    app: Quart, database: Database, user: int
) -> None:
    """It is opened with the first stream and kept after the last."""
    hub = hub_of(app)
    assert not hub._tasks
    assert await count_listeners(database) == 0
    other = await add_user(database, "other")
    for _ in range(2):
        async with (
            browsing(app, f"/stream/{user}") as first,
            browsing(app, f"/stream/{user}") as second,
            browsing(app, f"/stream/{other}") as third,
        ):
            for page in (first, second, third):
                await page.message()
            assert len(hub) == 3
            await publish_numbers(database, user, 1)
            await publish_numbers(database, other, 1)
            for page in (first, second, third):
                assert await page.numbers(1) == [1]
            assert await count_listeners(database) == 1
        assert len(hub) == 0
        assert not hub._streams
    assert await count_listeners(database) == 1
    await hub.close()

    async def is_closed() -> bool:
        return await count_listeners(database) == 0

    await eventually(is_closed, "end of the connection")


async def test_a_stream_sends_heartbeats_and_expires(
    app: Quart, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LIFETIME_SECONDS", (0.3, 0.4))
    hub = hub_of(app)
    hub.tick = hub.heartbeat = 0.01
    connection: Any = app.test_client().request(f"/stream/{user}")
    async with asyncio.timeout(TIMEOUT_SECONDS):
        async with connection:  # waits for the end of the response
            await connection.send_complete()
    parser = Parser()
    assert [message.kind for message in parser.feed(bytes(connection.response_data))] == ["hello"]
    assert parser.heartbeats >= 3
    assert len(hub) == 0


async def test_streams_are_limited_per_user_and_process(
    app: Quart, database: Database, user: int
) -> None:
    hub = hub_of(app)
    hub.per_user, hub.per_process = 2, 3
    other = await add_user(database, "other")
    client = app.test_client()
    async with (
        browsing(app, f"/stream/{user}") as first,
        browsing(app, f"/stream/{user}"),
    ):
        await first.message()
        refused = await client.get(f"/stream/{user}")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
        async with browsing(app, f"/stream/{other}") as third:
            await third.message()
            refused = await client.get(f"/stream/{other}")
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "60")
    async with browsing(app, f"/stream/{user}") as page:
        await page.message()


async def test_a_head_request_opens_no_stream(app: Quart, user: int) -> None:
    response = await app.test_client().head(f"/stream/{user}")
    assert response.content_type == "text/event-stream; charset=utf-8"
    assert not hub_of(app)._tasks


async def test_streams_end_when_the_process_drains(app: Quart, user: int) -> None:
    async with browsing(app, f"/stream/{user}") as page:
        await page.message()
        app.extensions["quart_upsun"].draining.set()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await page.connection._task
    response = await app.test_client().get(f"/stream/{user}")
    assert response.status_code == 200
    assert (await response.get_data(as_text=True)).startswith("retry: ")
    assert len(hub_of(app)) == 0


async def test_the_listener_reconnects(
    app: Quart, database: Database, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that are published while the listener is disconnected arrive too."""
    may_connect = asyncio.Event()
    may_connect.set()

    async def when_allowed(*args: Any, **options: Any) -> Any:
        await may_connect.wait()
        return await connect(*args, **options)

    async def is_listening() -> bool:
        return await count_listeners(database) == 1

    async def is_disconnected() -> bool:
        return await count_listeners(database) == 0

    monkeypatch.setattr("quart_upsun.live.listener.connect", when_allowed)
    async with browsing(app, f"/stream/{user}") as page:
        await page.message()
        await eventually(is_listening, "listening")
        may_connect.clear()
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :n"
        async with database.read() as session:
            await session.execute(text(query), {"n": APPLICATION_NAME})
        await eventually(is_disconnected, "end of the connection")
        await publish_numbers(database, user, 1, 2)
        may_connect.set()
        assert await page.numbers(2) == [1, 2]
        await publish_numbers(database, user, 3)
        assert await page.numbers(1) == [3]


@asynccontextmanager
async def tcp_proxy(url: str) -> AsyncIterator["TcpProxy"]:
    """Run a proxy between the application and its database."""
    proxy = TcpProxy(url)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.close()


class TcpProxy:
    """A proxy to the database that can be closed and opened again."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        address = self._target.set(host="127.0.0.1", port=self._port)
        return address.render_as_string(hide_password=False)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_connection(self._target.host, self._target.port)
        self._writers |= {writer, out}
        await asyncio.gather(_pump(reader, out), _pump(back, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_streams_survive_a_database_outage(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams stay open, new ones start, and all receive the missed events afterwards."""
    monkeypatch.setattr(listener, "BACKOFF_SECONDS", (0.05, 0.2))
    monkeypatch.setattr("quart_upsun.live.hub.RETRY_SECONDS", 0.05)
    direct = Database(settings.database_url, pool_size=2)
    user = await add_user(direct, "ada")
    async with tcp_proxy(database_url) as proxy:
        changed = settings.model_copy(update={"database_url": parse_database_url(proxy.url)})
        app = with_streams(changed)
        async with app.test_app():
            hub = hub_of(app)
            hub.tick = hub.heartbeat = 0.02
            async with browsing(app, f"/stream/{user}?after=0") as page:
                await publish_numbers(direct, user, 0)
                assert await page.numbers(1) == [0]
                proxy.close()
                await publish_numbers(direct, user, 1)
                async with browsing(app, f"/stream/{user}?after=0") as late:
                    for each in (page, late):
                        seen = each.parser.heartbeats
                        while each.parser.heartbeats < seen + 3:
                            await each.read()
                    assert not page._messages
                    await publish_numbers(direct, user, 2)
                    await proxy.open()
                    assert await page.numbers(2) == [1, 2]
                    assert await late.numbers(3) == [0, 1, 2]
            await eventually(lambda: len(hub) == 0, "end of the streams")
    await direct.close()


class FakeConnection:
    """A connection that records whether it was aborted."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True


async def test_a_slow_stream_buffers_little_and_loses_no_events(
    app: Quart, database: Database, user: int
) -> None:
    hub = hub_of(app)
    slow = hub.open(user, None, FakeConnection())
    quick = hub.open(user, None, FakeConnection())
    for each in (slow, quick):
        assert (await anext(each)).startswith(b"retry: ")
        assert b"hello" in await anext(each)
    total = 5 * history.BATCH_SIZE
    parser = Parser()
    for number in range(total):
        await publish_numbers(database, user, number)
    seen: list[Message] = []
    while len(seen) < total:
        seen += parser.feed(await anext(quick))
    assert slow.is_behind
    assert len(slow._pending) < 2 * history.BATCH_SIZE
    parser = Parser()
    late: list[Message] = []
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(late) < total:
            late += parser.feed(await anext(slow))
    assert late == seen
    for each in (slow, quick):
        await each.aclose()


async def test_a_client_that_does_not_read_is_dropped_after_the_timeout(
    app: Quart, database: Database, user: int
) -> None:
    hub = hub_of(app)
    hub.tick = 0.01
    connections = [FakeConnection(), FakeConnection(), FakeConnection()]
    unread, not_started, waiting = (hub.open(user, None, each) for each in connections)
    for each in (unread, waiting):
        await anext(each)
        await anext(each)
    task = asyncio.create_task(_next(waiting))
    await asyncio.sleep(0)
    # Set only now, because starting the streams may take longer on a busy machine.
    hub.read_timeout_seconds = 0.1
    await eventually(lambda: len(hub) == 1, "end of the unread streams")
    assert [each.aborted for each in connections] == [True, True, False]
    with pytest.raises(StopAsyncIteration):
        await anext(unread)
    with pytest.raises(StopAsyncIteration):
        await anext(not_started)
    await publish_numbers(database, user, 1)
    assert b'data: {"n": 1}' in await task
    await waiting.aclose()


async def test_a_stream_that_ends_during_a_check_is_not_dropped(
    app: Quart, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = hub_of(app)
    monkeypatch.setattr("quart_upsun.live.hub.STREAMS_PER_TURN", 1)
    hub.tick, hub.heartbeat, hub.read_timeout_seconds = 0.01, 0.2, 0.1
    opened = [hub.open(user, None, FakeConnection()) for _ in range(10)]
    dropped: list[Stream] = []
    monkeypatch.setattr(Stream, "drop", lambda each: dropped.append(each))

    async def read(each: Stream) -> None:
        async for piece in each:
            if piece == streams.HEARTBEAT:  # all end at the first heartbeat
                for other in opened:
                    other.end()
        await each.aclose()

    tasks = [asyncio.create_task(read(each)) for each in opened]
    await eventually(lambda: len(hub) == 0, "end of all")
    await asyncio.sleep(0.05)  # several ticks
    await asyncio.gather(*tasks)
    assert dropped == []


async def _next(each: Stream) -> bytes:
    return await anext(each)


async def test_invalid_notifications_are_ignored(
    app: Quart, database: Database, database_url: str, user: int
) -> None:
    async with browsing(app, f"/stream/{user}") as page:
        await page.message()
        connection = await asyncpg.connect(database_url)
        for payload in ("", "x", "-1", "9" * 30):
            await connection.execute("SELECT pg_notify('live', $1)", payload)
        await connection.close()
        await publish_numbers(database, user, 1)
        assert await page.numbers(1) == [1]
