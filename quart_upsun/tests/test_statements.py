"""`direct()` and `Statement`, on a real PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NamedTuple

import asyncpg
import pytest
from sqlalchemy import bindparam, func, literal, select

from quart_upsun.database import (
    STATEMENT_TIMEOUT_SECONDS,
    Base,
    Connection,
    Database,
    DatabaseUnavailableError,
    SchemaBehindError,
)
from quart_upsun.database.statements import Statement
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.statements import connected
from quart_upsun.tests.sample import add_row
from quart_upsun.tests.sample.settings import ROOT

SLEEPER = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND query = 'SELECT pg_sleep(60)'
"""


class MailRow(NamedTuple):
    id: int
    kind: str
    is_new: bool


mails = Base.metadata.tables["mails"]
LIST_MAILS = Statement(
    select(
        mails.c.id,
        mails.c.kind,
        mails.c.created_at > func.now() - literal(timedelta(hours=1)),
    )
    .where(mails.c.kind >= bindparam("least"), mails.c.kind != "hidden")
    .order_by(mails.c.kind)
    .limit(bindparam("count")),
    MailRow._make,
)


async def add(database: Database, *names: str) -> None:
    async with database.write() as session:
        for name in names:
            await session.execute(add_row, {"kind": name})


async def names(database: Database) -> list[str]:
    async with database.direct() as connection:
        found = await LIST_MAILS.rows(connection, least="", count=9)
    return [each.kind for each in found]


async def test_direct_and_session_return_the_same_rows(database: Database) -> None:
    await add(database, "ada", "bob", "hidden", "zoe")
    async with database.read() as session:
        by_session = await LIST_MAILS.rows(session, least="b", count=9)
    async with database.direct() as connection:
        direct = await LIST_MAILS.rows(connection, least="b", count=9, another="is ignored")
        (first,) = await LIST_MAILS.rows(connection, count=1, least="")
    assert direct == by_session
    assert [(each.kind, each.is_new) for each in direct] == [("bob", True), ("zoe", True)]
    assert first.kind == "ada"


async def test_a_missing_parameter_is_an_error(database: Database) -> None:
    async with database.direct() as connection:
        with pytest.raises(KeyError, match="least"):
            await LIST_MAILS.rows(connection, count=1)


async def test_direct_requires_a_migrated_schema(empty_database: str) -> None:
    database = Database(
        parse_database_url(empty_database), pool_size=1, migrations=ROOT / "alembic"
    )
    with pytest.raises(SchemaBehindError):
        await names(database)
    await database.close()


async def test_a_dropped_schema_closes_the_gate(database: Database, database_url: str) -> None:
    assert await names(database) == []
    async with connected(database_url) as other:
        await other.execute("DROP TABLE mails CASCADE; DELETE FROM alembic_version")
    with pytest.raises(SchemaBehindError):
        await names(database)
    assert not database.gate.is_open


async def test_a_changed_column_type_does_not_break_statements(
    database: Database, database_url: str
) -> None:
    await add(database, "ada")
    assert await names(database) == ["ada"]
    async with connected(database_url) as other:
        await other.execute("ALTER TABLE mails ALTER COLUMN kind TYPE text")
    assert await names(database) == ["ada"]


async def sleeper(connection: Connection) -> int:
    """Wait for the sleeping statement; return the pid of its server process."""
    async with asyncio.timeout(30):
        while True:
            found: int | None = await connection.fetchval(SLEEPER)
            if found:
                return found
            await asyncio.sleep(0.01)


async def sleep_in_server(database: Database) -> None:
    async with database.direct() as connection:
        await connection.fetch("SELECT pg_sleep(60)")


@pytest.mark.parametrize(
    ("how", "message"),
    [("pg_terminate_backend", "lost|canceled"), ("pg_cancel_backend", "canceled a statement")],
)
async def test_a_statement_canceled_by_the_server_is_an_outage(
    how: str, message: str, database: Database, database_url: str
) -> None:
    sleeping = asyncio.create_task(sleep_in_server(database))
    async with connected(database_url) as other:
        await other.execute(f"SELECT {how}({await sleeper(other)})")
    with pytest.raises(DatabaseUnavailableError, match=message):
        await sleeping
    assert await names(database) == []


async def test_a_closed_connection_closes_the_gate(database: Database) -> None:
    async def terminate(connection: Connection) -> None:
        connection.terminate()
        await connection.fetch("SELECT 1")

    with pytest.raises(DatabaseUnavailableError, match="the connection to the database was lost"):
        await run_in_block(database, terminate)
    assert not database.gate.is_open
    assert await names(database) == []


async def test_a_statement_timeout_closes_the_connection(database: Database) -> None:
    used = []

    async def time_out(connection: Connection) -> None:
        used.append(connection)
        await connection.fetch("SELECT pg_sleep(60)", timeout=0.05)

    with pytest.raises(DatabaseUnavailableError, match="the connection to the database was lost"):
        await run_in_block(database, time_out)
    # The next caller must not wait for the statement.
    assert [connection.is_closed() for connection in used] == [True]
    assert not database.gate.is_open
    assert await names(database) == []


async def test_cancellation_closes_the_connection_and_cancels_the_statement(
    database: Database, database_url: str
) -> None:
    sleeping = asyncio.create_task(sleep_in_server(database))
    async with connected(database_url) as other:
        cancelled_pid = await sleeper(other)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
    pool: Any = database.engine.pool
    assert (pool.checkedout(), database.waiting) == (0, 0)
    async with database.direct() as connection:
        assert connection.get_server_pid() != cancelled_pid
    # Before the server's own statement timeout.
    async with connected(database_url) as other, asyncio.timeout(STATEMENT_TIMEOUT_SECONDS / 2):
        while await other.fetchval(SLEEPER):  # noqa: ASYNC110 the condition is in the server
            await asyncio.sleep(0.01)


async def run_in_block(database: Database, work: Callable[[Connection], Awaitable[None]]) -> None:
    async with database.direct() as connection:
        await work(connection)


async def test_an_exception_of_the_block_keeps_the_connection(database: Database) -> None:
    seen = set()

    async def fail(connection: Connection) -> None:
        seen.add(connection.get_server_pid())
        raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await run_in_block(database, fail)
    assert len(seen) == 1
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0


async def test_an_invalid_statement_is_not_an_outage(database: Database) -> None:
    async def wrong(connection: Connection) -> None:
        await connection.fetch("SELECT 1 / 0")

    async def wrong_type(connection: Connection) -> None:
        await LIST_MAILS.rows(connection, least=1, count=1)

    with pytest.raises(asyncpg.DivisionByZeroError):
        await run_in_block(database, wrong)
    with pytest.raises(asyncpg.DataError):
        await run_in_block(database, wrong_type)
    assert database.gate.is_open


async def test_an_unreachable_database_is_unavailable(unused_tcp_port: int) -> None:
    url = parse_database_url(f"postgresql://u:p@127.0.0.1:{unused_tcp_port}/d")
    database = Database(url, pool_size=1, migrations=ROOT / "alembic")
    with pytest.raises(DatabaseUnavailableError):
        await names(database)
    await database.close()
