"""Advisory locks, so that a command runs only once at a time, on any number of machines."""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# Arbitrary keys that nothing else in this database locks. Live events use pairs of keys.
MIGRATE = 0x71756172
SANITIZE = 0x73616E69


async def acquire(
    connection: AsyncConnection, key: int, *, seconds: float, on_wait: Callable[[], None]
) -> None:
    """Acquire a session-level advisory lock, which is released when the connection closes.

    Polls, because a statement that waits would block `CREATE INDEX CONCURRENTLY`.

    Args:
        connection: a connection outside a transaction. It has none afterwards either.
        key: the key of the lock.
        seconds: the maximum time to wait.
        on_wait: called once if another session holds the lock.

    Raises:
        TimeoutError: another session held the lock all that time.
    """
    deadline = time.monotonic() + seconds
    waiting = False
    while True:
        is_acquired = await connection.scalar(text(f"SELECT pg_try_advisory_lock({key})"))
        await connection.rollback()
        if is_acquired:
            return
        if time.monotonic() > deadline:
            raise TimeoutError
        if not waiting:
            waiting = True
            on_wait()
        await asyncio.sleep(0.2)
