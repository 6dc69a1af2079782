"""Find out whether a connection goes through a connection pooler, and what the pooler can do.

No setting names the pooler: its answers tell. https://www.pgbouncer.org/features.html
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg

from quart_upsun.compat.asyncpg import Connection

PID = "SELECT pg_backend_pid()"
# Within a transaction, the pooler does not change the server connection between the two.
HAS_STATEMENT = "SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name = $1)"

ROUNDS = 10
ANSWER_TIMEOUT_SECONDS = 5.0


async def is_pooled(connection: Connection) -> bool:
    """Tell whether there is a pooler between this process and PostgreSQL.

    A pooler hands out a process id of its own for cancel requests, because the server's changes.
    """
    pid = await connection.fetchval(PID, timeout=ANSWER_TIMEOUT_SECONDS)
    return bool(pid != connection.get_server_pid())


async def forwards_prepared_statements(connection: Connection) -> bool:
    """Tell whether a pooler prepares a client's named statements on each server connection.

    It then renames them, because several clients may use the same name. PgBouncer does so since
    1.21, if `max_prepared_statements` is not 0.
    """
    name = f"probe_{secrets.token_hex(8)}"
    async with connection.transaction():
        statement = await connection.prepare(HAS_STATEMENT, name=name)
        is_renamed = not await statement.fetchval(name)
        if not is_renamed:
            await connection.execute(f"DEALLOCATE {name}")
    return is_renamed


async def has_session(
    connection: Connection, connect_again: Callable[[], Awaitable[Connection]]
) -> bool:
    """Tell whether a pooler keeps one server connection for each client (session mode).

    Otherwise two open clients share a server connection sooner or later, or one client changes it.
    Without a contradiction, the answer is yes, for instance if the pooler has no second connection.

    Args:
        connection: a connection for which `is_pooled()` is true.
        connect_again: opens another connection of the same kind.
    """
    pid = await connection.fetchval(PID, timeout=ANSWER_TIMEOUT_SECONDS)
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        other = await connect_again()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                for _ in range(ROUNDS):
                    if await other.fetchval(PID) == pid or await connection.fetchval(PID) != pid:
                        return False
        finally:
            other.terminate()
    return True
