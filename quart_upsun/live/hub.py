"""Deliver published events to the open streams of this process.

One connection listens for notifications, and one query fetches the events of many users. Missed
events and new events are fetched in the same way, as all events after the position of a stream, so
none are lost in between.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextvars import Context
from itertools import islice
from typing import Any

from quart import Quart

from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.live import history
from quart_upsun.live.connection import ConnectionMiddleware
from quart_upsun.live.events import HELLO, RESET
from quart_upsun.live.history import BATCH_SIZE, Event, StreamPosition, StreamStart
from quart_upsun.live.listener import Listener
from quart_upsun.live.stream import HEARTBEAT, Connection, Stream, encode_event
from quart_upsun.logging import get_logger

log = get_logger(__name__)

START_BATCH_SIZE = 100  # positions per query, each with up to MAX_REPLAYED_EVENTS events
FETCH_BATCH_SIZE = 500  # users per query
STREAMS_PER_TURN = 50  # streams to wake before yielding to the event loop

RETRY_SECONDS = 1.0  # between two failed queries
SHUTDOWN_SECONDS = 1.0  # for clients to read the last bytes when the process stops


class TooManyStreamsError(Exception):
    """The process has reached its maximum number of streams."""


class TooManyUserStreamsError(TooManyStreamsError):
    """The user has reached the maximum number of streams."""


class Hub:
    """The open streams of one process.

    It connects and starts its tasks with the first stream.

    Attributes:
        heartbeat: seconds after which an idle stream sends a comment. It keeps proxies from closing
            the connection, and detects clients that have vanished.
        read_timeout_seconds: the time a client has to read; after it the stream is dropped.
        tick: seconds between two checks of all streams for both.
        per_user: the maximum number of streams of a user in this process.
        per_process: the maximum number of streams in this process.
    """

    def __init__(self, database: Database, draining: asyncio.Event) -> None:
        self.heartbeat = 15.0
        self.read_timeout_seconds = 10.0
        self.tick = 1.0
        self.per_user = 20
        self.per_process = 10_000
        self._database = database
        self._draining = draining
        self._streams: dict[int, set[Stream]] = {}
        self._count = 0
        self._opening: dict[Stream, None] = {}  # in the order of their requests
        self._due: dict[int, None] = {}
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._endings: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return the number of open streams."""
        return self._count

    def open(
        self,
        user_id: int,
        after: int | None,
        connection: Connection | None,
        *,
        is_new: bool = False,
    ) -> Stream:
        """Open a stream.

        Args:
            user_id: the id of the user.
            after: the id of the last event that the client has received; None starts with the next.
            connection: the connection of the request.
            is_new: whether the user is so new that none of their events has been deleted.

        Raises:
            TooManyUserStreamsError: the user has too many streams.
            TooManyStreamsError: the process has too many streams.
        """
        if self._count >= self.per_process:
            raise TooManyStreamsError
        if len(self._streams.get(user_id, ())) >= self.per_user:
            raise TooManyUserStreamsError
        stream = Stream(StreamPosition(user_id, after, is_new), owner=self, connection=connection)
        self._streams.setdefault(user_id, set()).add(stream)
        self._count += 1
        self._opening[stream] = None
        self._work.set()
        if not self._tasks:
            self._start_tasks()
        return stream

    def leave(self, stream: Stream) -> None:
        """Remove a stream that has ended."""
        user_id = stream.position.user_id
        streams = self._streams.get(user_id)
        if streams is None or stream not in streams:
            return
        streams.discard(stream)
        self._count -= 1
        self._opening.pop(stream, None)
        if not streams:
            del self._streams[user_id]
            self._due.pop(user_id, None)

    def fetch(self, user_id: int) -> None:
        """Fetch the events of a user, if the user has streams in this process."""
        if user_id in self._streams:
            self._due[user_id] = None
            self._work.set()

    def has_streams(self, user_id: int) -> bool:
        """Tell whether a user has open streams in this process."""
        return user_id in self._streams

    async def close(self) -> None:
        """End all streams and close the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for stream in self._all():
            stream.end()

    def _all(self) -> list[Stream]:
        return [stream for streams in self._streams.values() for stream in streams]

    def _start_tasks(self) -> None:
        listener = Listener(
            self._database.direct_url, notified=self.fetch, connected=self._fetch_all
        )
        self._tasks = [
            _create_task(listener.run()),
            _create_task(self._fetch_events()),
            _create_task(self._check_streams()),
            _create_task(self._end_on_shutdown()),
        ]

    def _fetch_all(self) -> None:
        self._due.update(dict.fromkeys(self._streams))
        self._work.set()

    async def _fetch_events(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while self._opening or self._due:
                    await self._fetch_batch()
                continue
            except DatabaseUnavailableError:
                pass  # logged by the gate; the streams stay open and lose no events
            except Exception:
                log.exception("live events fetch failed")
            self._work.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _fetch_batch(self) -> None:
        """Fetch events for all streams that are due with one session, and send them."""
        # Streams and users that become due from here on are for the next batch. Those of this batch
        # are put back only if the query fails.
        opening = [*islice(self._opening, START_BATCH_SIZE)]
        due = [*islice(self._due, FETCH_BATCH_SIZE)]
        for stream in opening:
            del self._opening[stream]
        for user_id in due:
            del self._due[user_id]
        new_positions = _group_by_position(opening)
        positions = _group_by_position(
            stream
            for user_id in due
            for stream in self._streams.get(user_id, ())
            if stream.is_open and self._has_room(stream)
        )
        try:
            async with self._database.read(exact=True) as session:
                starts = (
                    await history.fetch_starts(session, [*new_positions]) if new_positions else []
                )
                fetched = await history.fetch_events(session, [*positions]) if positions else []
        except BaseException:
            self._opening.update(
                dict.fromkeys(stream for stream in opening if self._is_here(stream))
            )
            for user_id in due:
                self.fetch(user_id)
            raise
        for (position, streams), start in zip(new_positions.items(), starts, strict=True):
            await self._start(position, streams, start)
        for (position, streams), events in zip(positions.items(), fetched, strict=True):
            await self._send(position, streams, events)

    def _has_room(self, stream: Stream) -> bool:
        # A full stream fetches its events once its client has read. Until then they stay in the
        # database.
        stream.is_behind = not stream.has_room
        return stream.has_room

    def _is_here(self, stream: Stream) -> bool:
        return stream in self._streams.get(stream.position.user_id, ())

    async def _start(
        self, position: StreamPosition, streams: list[Stream], start: StreamStart
    ) -> None:
        """Send the first events of streams, and open them for later events."""
        pieces, newest = [], start.newest
        if start.missed is None:
            kind = HELLO if position.after is None else RESET
            pieces = [encode_event(Event(newest, kind, "{}"))]
        elif start.missed:
            pieces, newest = [*map(encode_event, start.missed)], start.missed[-1].id
        # An event that was committed after the query has made the user due again, and the next
        # batch includes these streams. If the listener was disconnected, all users become due once
        # it reconnects.
        for stream in streams:
            stream.is_open = True
        await self._move(StreamPosition(position.user_id, newest), streams, pieces)

    async def _send(
        self, position: StreamPosition, streams: list[Stream], events: list[Event]
    ) -> None:
        if not events:
            return
        if len(events) == BATCH_SIZE:
            self.fetch(position.user_id)  # there may be more
        await self._move(
            StreamPosition(position.user_id, events[-1].id), streams, [*map(encode_event, events)]
        )

    async def _move(
        self, position: StreamPosition, streams: list[Stream], pieces: list[bytes]
    ) -> None:
        """Send the same events to streams with the same position, and advance the position."""
        for number, stream in enumerate(streams, 1):
            stream.position = position
            stream.offer(pieces)
            if number % STREAMS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _check_streams(self) -> None:
        """Send heartbeats, end expired streams, and drop those whose clients do not read."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.tick)
            woken = dropped = 0
            for stream in self._all():
                if not self._is_here(stream):
                    continue  # ended meanwhile
                now = loop.time()
                if now >= stream.ends_at:
                    stream.end()
                if not stream.is_waiting:
                    if now - stream.since > self.read_timeout_seconds:
                        stream.drop()
                        dropped += 1
                elif now - stream.since >= self.heartbeat:
                    stream.offer([HEARTBEAT])
                    woken += 1
                    if woken % STREAMS_PER_TURN == 0:
                        await asyncio.sleep(0)
            if dropped:
                log.info("slow streams dropped", count=dropped)

    def end_streams(self) -> None:
        """End all streams, so that browsers reconnect and are checked again."""
        ending = _create_task(self._end_all())
        self._endings.add(ending)  # the event loop keeps only weak references
        ending.add_done_callback(self._endings.discard)

    async def _end_all(self) -> None:
        for number, stream in enumerate(self._all(), 1):
            stream.end()
            if number % STREAMS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _end_on_shutdown(self) -> None:
        """End all streams at shutdown, so that browsers reconnect to another process."""
        await self._draining.wait()
        await self._end_all()
        await asyncio.sleep(SHUTDOWN_SECONDS)
        for stream in self._all():
            stream.drop()


def init_app(app: Quart, database: Database, draining: asyncio.Event) -> Hub:
    """Create the hub. Call it after `http.init_app`, because its middleware must be outermost."""
    hub = Hub(database, draining)
    app.asgi_app = ConnectionMiddleware(app.asgi_app)  # type: ignore[method-assign]

    @app.while_serving
    async def serve() -> AsyncGenerator[None, None]:
        yield
        await hub.close()

    return hub


def _group_by_position(streams: Iterable[Stream]) -> dict[StreamPosition, list[Stream]]:
    """Group streams by their position."""
    positions: dict[StreamPosition, list[Stream]] = {}
    for stream in streams:
        positions.setdefault(stream.position, []).append(stream)
    return positions


def _create_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    # In an empty context; otherwise it would keep the context of the first request.
    task = asyncio.create_task(work, context=Context())
    task.add_done_callback(_log_task_error)
    return task


def _log_task_error(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("live events task failed", exc_info=error)
