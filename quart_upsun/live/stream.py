"""One open stream: what waits to be sent to one browser."""

import asyncio
import random
from collections.abc import Sequence
from typing import Protocol

from quart_upsun.live.history import BATCH_SIZE, Event, StreamPosition

CHUNK_BYTES = 64 * 1024  # bytes that are handed to the connection at once, or one event
HEARTBEAT = b":\n\n"

# Milliseconds after which a browser comes back. Not all in the same moment: a deploy ends the
# streams of everybody at once.
RETRY_MILLISECONDS = (1000, 3000)

# Seconds. A stream ends by itself, so that the browser comes back through the check of its login:
# a session that was ended meanwhile is not told things for ever.
LIFETIME_SECONDS = (15 * 60, 30 * 60)


class Connection(Protocol):
    """What a stream needs of the connection it is sent on."""

    def abort(self) -> None: ...


class StreamOwner(Protocol):
    """Who has opened a stream, and hears from it."""

    def leave(self, stream: "Stream") -> None:
        """It has ended, for whatever reason; told more than once."""

    def fetch(self, user_id: int) -> None:
        """It has room again for events that were left in the database."""


def encode_event(event: Event) -> bytes:
    """Return an event as it is sent. JSON as PostgreSQL writes it has no line breaks."""
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.data}\n\n".encode()


class Stream:
    """The body of an answer that does not end.

    Thousands of them are open: there is no task, no queue and no timer to each. Whoever has
    something for it calls `offer`; Quart's own task waits for it here.

    Attributes:
        place: whose it is, and up to which event it was told everything.
        is_open: whether it has its place; before, the database must be asked.
        is_behind: whether events were found for which there was no room.
        since: when it began what it is doing: waiting, or sending. Seconds of the loop's clock.
        ends_at: when it ends by itself, by the same clock.
    """

    __slots__ = (
        "_connection",
        "_ended",
        "_owner",
        "_pending",
        "_task",
        "_waiting",
        "ends_at",
        "is_behind",
        "is_open",
        "place",
        "since",
    )

    def __init__(
        self,
        place: StreamPosition,
        *,
        owner: StreamOwner,
        connection: Connection | None,
    ) -> None:
        self.place = place
        self.is_open = False
        self.is_behind = False
        self.since = asyncio.get_running_loop().time()
        self.ends_at = self.since + random.uniform(*LIFETIME_SECONDS)  # noqa: S311
        self._owner = owner
        self._connection = connection
        self._task: asyncio.Task[object] | None = None
        self._pending: list[bytes] = []
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False

    @property
    def is_waiting(self) -> bool:
        """Whether everything was taken by the connection."""
        return self._waiting is not None

    @property
    def has_room(self) -> bool:
        return len(self._pending) < BATCH_SIZE

    def offer(self, pieces: Sequence[bytes]) -> None:
        """Send this next."""
        self._pending.extend(pieces)
        self._wake()

    def end(self) -> None:
        """End the answer: the browser comes back, and resumes where it was."""
        self._ended = True
        self._pending.clear()
        self._wake()

    def drop(self) -> None:
        """End the connection, whose client does not read: an answer could not be ended properly.

        The connection would be kept until the client has taken what was sent, and so would its
        buffers.
        """
        self.end()
        if self._connection is not None:
            self._connection.abort()
        elif self._task is not None:
            self._task.cancel()
        self._close()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        loop = asyncio.get_running_loop()
        if self._task is None and not self._ended:
            self._task = asyncio.current_task()
            self.since = loop.time()
            return f"retry: {random.randint(*RETRY_MILLISECONDS)}\n\n".encode()  # noqa: S311
        self.since = loop.time()
        while not self._pending:
            if self._ended:
                raise StopAsyncIteration
            self._waiting = loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        self.since = loop.time()
        return self._take()

    async def aclose(self) -> None:
        """Called by Quart at the end, also when the client has gone."""
        self._ended = True
        self._close()

    def _take(self) -> bytes:
        count, size = 1, len(self._pending[0])
        while count < len(self._pending) and size + len(self._pending[count]) <= CHUNK_BYTES:
            size += len(self._pending[count])
            count += 1
        piece = self._pending[0] if count == 1 else b"".join(self._pending[:count])
        del self._pending[:count]
        if self.is_behind and self.has_room:
            self.is_behind = False
            self._owner.fetch(self.place.user_id)
        return piece

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _close(self) -> None:
        self._owner.leave(self)
        self._task = self._connection = None
