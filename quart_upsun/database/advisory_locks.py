"""Commands that run one at a time on a database, whichever machine they run on."""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# Any numbers that nothing else in this database locks. Live events lock pairs of numbers.
MIGRATE = 0x71756172
SANITIZE = 0x73616E69


async def acquire(
    connection: AsyncConnection, key: int, *, seconds: float, on_wait: Callable[[], None]
) -> None:
    """Take a lock, which the database session holds until it ends.

    Asks again and again: a statement that waits would hold up `CREATE INDEX CONCURRENTLY`.

    Args:
        connection: without a transaction, before and afterwards.
        key: which lock.
        seconds: to wait at most.
        on_wait: called once if somebody else has the lock.

    Raises:
        TimeoutError: somebody else has kept it for all that time.
    """
    deadline = time.monotonic() + seconds
    waiting = False
    while True:
        is_taken = await connection.scalar(text(f"SELECT pg_try_advisory_lock({key})"))
        await connection.rollback()
        if is_taken:
            return
        if time.monotonic() > deadline:
            raise TimeoutError
        if not waiting:
            waiting = True
            on_wait()
        await asyncio.sleep(0.2)
