"""Brings what was published to the open streams of this process, whoever published it.

However many streams there are, one connection hears who has news, and one statement fetches it for
all who have some at the same time. What a stream missed and what happens now come the same way:
everything after the place where it stands, in order. So nothing lies between the two.
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

START_BATCH_SIZE = (
    100  # places that one statement is asked for; each may have as many events as replayed
)
FETCH_BATCH_SIZE = 500
STREAMS_PER_TURN = 50  # streams that are woken before others of the process get their turn

RETRY_SECONDS = 1.0  # seconds before the database is asked again
SHUTDOWN_SECONDS = 1.0  # seconds that clients have to take the last bytes when the process ends


class TooManyStreamsError(Exception):
    """There are as many streams as there may be."""


class TooManyUserStreamsError(TooManyStreamsError):
    """This user has as many streams as one may have."""


class Hub:
    """The open streams of one process.

    Nothing is opened or begun before the first of them.

    Attributes:
        heartbeat: seconds after which an idle stream is sent a comment. Proxies end connections on
            which nothing happens, and a client that has vanished is only noticed by sending.
        read_timeout_seconds: how long a client may take to read; then its stream is dropped.
        tick: seconds between two looks at all streams for the above.
        per_user: streams that one user may have in this process.
        per_process: streams that there may be in all.
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
        self._opening: dict[Stream, None] = {}  # in the order in which they came
        self._due: dict[int, None] = {}
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """Return how many streams are open."""
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
            user_id: whose.
            after: the last event the client knows of; None begins with the next one.
            connection: what it is sent on.
            is_new: whether the user is so new that none of their events was deleted yet.

        Raises:
            TooManyUserStreamsError: the user has too many.
            TooManyStreamsError: the process has too many.
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
            self._begin()
        return stream

    def leave(self, stream: Stream) -> None:
        """Forget a stream that has ended."""
        user_id = stream.place.user_id
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
        """Look for events of a user, if a stream here waits for some."""
        if user_id in self._streams:
            self._due[user_id] = None
            self._work.set()

    async def close(self) -> None:
        """End all streams, and the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for stream in self._all():
            stream.end()

    def _all(self) -> list[Stream]:
        return [stream for streams in self._streams.values() for stream in streams]

    def _begin(self) -> None:
        listener = Listener(self._database.engine.url, heard=self.fetch, connected=self._fetch_all)
        self._tasks = [
            _create_task(listener.run()),
            _create_task(self._serve()),
            _create_task(self._keep()),
            _create_task(self._end_with_process()),
        ]

    def _fetch_all(self) -> None:
        self._due.update(dict.fromkeys(self._streams))
        self._work.set()

    async def _serve(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while self._opening or self._due:
                    await self._round()
                continue
            except DatabaseUnavailableError:
                pass  # the gate has said so; the streams stay open, and nothing is lost
            except Exception:
                log.exception("live events fetch failed")
            self._work.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _round(self) -> None:
        """Ask the database once for all that are due, and tell them."""
        # What is new from here on is for the next round. What this one takes is given back only if
        # the database does not answer.
        opening = [*islice(self._opening, START_BATCH_SIZE)]
        due = [*islice(self._due, FETCH_BATCH_SIZE)]
        for stream in opening:
            del self._opening[stream]
        for user_id in due:
            del self._due[user_id]
        beginnings = _group_by_position(opening)
        places = _group_by_position(
            stream
            for user_id in due
            for stream in self._streams.get(user_id, ())
            if stream.is_open and self._has_room(stream)
        )
        try:
            async with self._database.read() as session:
                openings = await history.fetch_starts(session, [*beginnings]) if beginnings else []
                events = await history.fetch_events(session, [*places]) if places else []
        except BaseException:
            self._opening.update(
                dict.fromkeys(stream for stream in opening if self._is_here(stream))
            )
            for user_id in due:
                self.fetch(user_id)
            raise
        for beginning, found in zip(beginnings.items(), openings, strict=True):
            await self._admit(*beginning, found)
        for (place, streams), news in zip(places.items(), events, strict=True):
            await self._tell(place, streams, news)

    def _has_room(self, stream: Stream) -> bool:
        # If not it asks for itself once its client has read; what it is waited for lies in the
        # database, and not in this process.
        stream.is_behind = not stream.has_room
        return stream.has_room

    def _is_here(self, stream: Stream) -> bool:
        return stream in self._streams.get(stream.place.user_id, ())

    async def _admit(
        self, place: StreamPosition, streams: list[Stream], opening: StreamStart
    ) -> None:
        """Tell streams where they stand; from then on they are told what comes after."""
        begin, newest = [], opening.newest
        if opening.missed is None:
            kind = HELLO if place.after is None else RESET
            begin = [encode_event(Event(newest, kind, "{}"))]
        elif opening.missed:
            begin, newest = [*map(encode_event, opening.missed)], opening.missed[-1].id
        # What was committed since the answer has made the user due again, for the next round: to
        # that these streams are open. If nobody listened, everybody is due once somebody does.
        for stream in streams:
            stream.is_open = True
        await self._move(StreamPosition(place.user_id, newest), streams, begin)

    async def _tell(self, place: StreamPosition, streams: list[Stream], news: list[Event]) -> None:
        if not news:
            return
        if len(news) == BATCH_SIZE:
            self.fetch(place.user_id)  # perhaps there is more
        await self._move(
            StreamPosition(place.user_id, news[-1].id), streams, [*map(encode_event, news)]
        )

    async def _move(
        self, place: StreamPosition, streams: list[Stream], pieces: list[bytes]
    ) -> None:
        """Send to streams that stand at the same place what brings them to another."""
        for number, stream in enumerate(streams, 1):
            stream.place = place
            stream.offer(pieces)
            if number % STREAMS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _keep(self) -> None:
        """Send heartbeats; end the streams whose time is over, or whose clients do not read."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.tick)
            touched = dropped = 0
            for stream in self._all():
                if not self._is_here(stream):
                    continue  # it has ended while others had their turn
                now = loop.time()
                if now >= stream.ends_at:
                    stream.end()
                if not stream.is_waiting:
                    if now - stream.since > self.read_timeout_seconds:
                        stream.drop()
                        dropped += 1
                elif now - stream.since >= self.heartbeat:
                    stream.offer([HEARTBEAT])
                    touched += 1
                    if touched % STREAMS_PER_TURN == 0:
                        await asyncio.sleep(0)
            if dropped:
                log.info("slow streams dropped", count=dropped)

    async def _end_with_process(self) -> None:
        """End all streams when the process is told to stop: browsers come back to another."""
        await self._draining.wait()
        for number, stream in enumerate(self._all(), 1):
            stream.end()
            if number % STREAMS_PER_TURN == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(SHUTDOWN_SECONDS)
        for stream in self._all():
            stream.drop()


def init_app(app: Quart, database: Database, draining: asyncio.Event) -> Hub:
    """Make the hub of an application; after `http.init_app`, outside of whose layer a part lies."""
    hub = Hub(database, draining)
    app.asgi_app = ConnectionMiddleware(app.asgi_app)  # type: ignore[method-assign]

    @app.while_serving
    async def serve() -> AsyncGenerator[None, None]:
        yield
        await hub.close()

    return hub


def _group_by_position(streams: Iterable[Stream]) -> dict[StreamPosition, list[Stream]]:
    """Put streams together that are to be told the same."""
    places: dict[StreamPosition, list[Stream]] = {}
    for stream in streams:
        places.setdefault(stream.place, []).append(stream)
    return places


def _create_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    # In a context of its own: the request that happened to be the first would live on in it.
    task = asyncio.create_task(work, context=Context())
    task.add_done_callback(_log_task_error)
    return task


def _log_task_error(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("live events task failed", exc_info=error)
