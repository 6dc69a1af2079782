"""An open stream with the events that wait to be sent to one browser."""

import asyncio
import random
from collections.abc import Sequence
from typing import Protocol

from quart_upsun.live.history import BATCH_SIZE, Event, StreamPosition

CHUNK_BYTES = 64 * 1024  # the maximum size of a chunk of several events
HEARTBEAT = b":\n\n"

# The browser's delay before it reconnects. It is random because a deploy ends all streams at once.
RETRY_MILLISECONDS = (1000, 3000)

# A stream ends by itself, so that the browser reconnects and its session is checked again.
# Otherwise a revoked session would receive events for ever.
LIFETIME_SECONDS = (15 * 60, 30 * 60)


class Connection(Protocol):
    """The connection of a stream."""

    def abort(self) -> None: ...


class StreamOwner(Protocol):
    """The owner of a stream, which is notified about it."""

    def leave(self, stream: "Stream") -> None:
        """Handle the end of a stream; may be called more than once."""

    def fetch(self, user_id: int) -> None:
        """Fetch events of a user, because a full stream has room again."""


def encode_event(event: Event) -> bytes:
    """Encode an event. PostgreSQL's JSON output has no line breaks."""
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.data}\n\n".encode()


class Stream:
    """The body of a streaming response.

    Thousands of streams can be open, so a stream has no task, queue or timer of its own. Quart's
    task iterates over it, and the hub calls `offer`.

    Attributes:
        position: the user and the last event that was sent.
        is_open: whether its start has been fetched from the database.
        is_behind: whether events were left in the database because it was full.
        since: when it began to wait or to send, in seconds of the event loop's clock.
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
        "position",
        "since",
    )

    def __init__(
        self,
        position: StreamPosition,
        *,
        owner: StreamOwner,
        connection: Connection | None,
    ) -> None:
        self.position = position
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
        """Whether the connection has accepted everything."""
        return self._waiting is not None

    @property
    def has_room(self) -> bool:
        return len(self._pending) < BATCH_SIZE

    def offer(self, pieces: Sequence[bytes]) -> None:
        """Append events to send."""
        self._pending.extend(pieces)
        self._wake()

    def end(self) -> None:
        """End the response; the browser reconnects and resumes."""
        self._ended = True
        self._pending.clear()
        self._wake()

    def drop(self) -> None:
        """Abort the connection of a client that does not read.

        A response that ends normally would keep the connection and its buffers until the client has
        read everything.
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
        """End the stream; Quart calls this, also when the client has disconnected."""
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
            self._owner.fetch(self.position.user_id)
        return piece

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _close(self) -> None:
        self._owner.leave(self)
        self._task = self._connection = None
