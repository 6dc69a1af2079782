"""Statements that asyncpg sends itself, on a real PostgreSQL: `direct()` errs as `read()` does."""

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


class Known(NamedTuple):
    id: int
    kind: str
    is_new: bool


mails = Base.metadata.tables["mails"]
KNOWN = Statement(
    select(
        mails.c.id,
        mails.c.kind,
        mails.c.created_at > func.now() - literal(timedelta(hours=1)),
    )
    .where(mails.c.kind >= bindparam("least"), mails.c.kind != "nobody")
    .order_by(mails.c.kind)
    .limit(bindparam("count")),
    Known._make,
)


async def add(database: Database, *names: str) -> None:
    async with database.write() as session:
        for name in names:
            await session.execute(add_row, {"kind": name})


async def names(database: Database) -> list[str]:
    async with database.direct() as connection:
        found = await KNOWN.rows(connection, least="", count=9)
    return [each.kind for each in found]


async def test_both_ways_give_the_same_rows(database: Database) -> None:
    await add(database, "ada", "bob", "nobody", "zoe")
    async with database.read() as session:
        by_session = await KNOWN.rows(session, least="b", count=9)
    async with database.direct() as connection:
        direct = await KNOWN.rows(connection, least="b", count=9, another="is passed over")
        (first,) = await KNOWN.rows(connection, count=1, least="")
    assert direct == by_session
    assert [(each.kind, each.is_new) for each in direct] == [("bob", True), ("zoe", True)]
    assert first.kind == "ada"


async def test_a_missing_value_is_no_null(database: Database) -> None:
    async with database.direct() as connection:
        with pytest.raises(KeyError, match="least"):
            await KNOWN.rows(connection, count=1)


async def test_nobody_asks_before_the_schema_is_there(empty_database: str) -> None:
    database = Database(
        parse_database_url(empty_database), pool_size=1, migrations=ROOT / "alembic"
    )
    with pytest.raises(SchemaBehindError):
        await names(database)
    await database.close()


async def test_a_schema_that_goes_away_closes_the_gate(
    database: Database, database_url: str
) -> None:
    assert await names(database) == []
    async with connected(database_url) as other:
        await other.execute("DROP TABLE mails CASCADE; DELETE FROM alembic_version")
    with pytest.raises(SchemaBehindError):
        await names(database)
    assert not database.gate.is_open


async def test_a_changed_column_type_fails_nothing(database: Database, database_url: str) -> None:
    await add(database, "ada")
    assert await names(database) == ["ada"]
    async with connected(database_url) as other:
        await other.execute("ALTER TABLE mails ALTER COLUMN kind TYPE text")
    assert await names(database) == ["ada"]


async def sleeper(connection: Connection) -> int:
    """Return the process of the server that sleeps, once it does."""
    async with asyncio.timeout(10):
        while True:
            found: int | None = await connection.fetchval(SLEEPER)
            if found:
                return found
            await asyncio.sleep(0.01)


async def napping(database: Database) -> None:
    async with database.direct() as connection:
        await connection.fetch("SELECT pg_sleep(60)")


@pytest.mark.parametrize(
    ("how", "message"),
    [("pg_terminate_backend", "lost|canceled"), ("pg_cancel_backend", "canceled a statement")],
)
async def test_what_the_server_ends_may_succeed_later(
    how: str, message: str, database: Database, database_url: str
) -> None:
    sleeping = asyncio.create_task(napping(database))
    async with connected(database_url) as other:
        await other.execute(f"SELECT {how}({await sleeper(other)})")
    with pytest.raises(DatabaseUnavailableError, match=message):
        await sleeping
    assert await names(database) == []


async def test_a_connection_that_is_gone_closes_the_gate(database: Database) -> None:
    async def broken(connection: Connection) -> None:
        connection.terminate()
        await connection.fetch("SELECT 1")

    with pytest.raises(DatabaseUnavailableError, match="the connection to the database was lost"):
        await inside(database, broken)
    assert not database.gate.is_open
    assert await names(database) == []


async def test_a_silent_server_is_not_waited_for(database: Database) -> None:
    used = []

    async def hasty(connection: Connection) -> None:
        used.append(connection)
        await connection.fetch("SELECT pg_sleep(60)", timeout=0.05)

    with pytest.raises(DatabaseUnavailableError, match="the connection to the database was lost"):
        await inside(database, hasty)
    # Who got it next would wait for its end, too.
    assert [connection.is_closed() for connection in used] == [True]
    assert not database.gate.is_open
    assert await names(database) == []


async def test_who_is_cut_off_leaves_no_busy_connection_behind(
    database: Database, database_url: str
) -> None:
    sleeping = asyncio.create_task(napping(database))
    async with connected(database_url) as other:
        busy = await sleeper(other)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
    pool: Any = database.engine.pool
    assert (pool.checkedout(), database.waiting) == (0, 0)
    async with database.direct() as connection:
        assert connection.get_server_pid() != busy
    # The server would end it by itself, later.
    async with connected(database_url) as other, asyncio.timeout(STATEMENT_TIMEOUT_SECONDS / 2):
        while await other.fetchval(SLEEPER):  # noqa: ASYNC110 it is in the server
            await asyncio.sleep(0.01)


async def inside(database: Database, do: Callable[[Connection], Awaitable[None]]) -> None:
    async with database.direct() as connection:
        await do(connection)


async def test_an_error_of_ones_own_costs_no_connection(database: Database) -> None:
    seen = set()

    async def fail(connection: Connection) -> None:
        seen.add(connection.get_server_pid())
        raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await inside(database, fail)
    assert len(seen) == 1
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0


async def test_a_wrong_statement_is_a_fault_and_no_outage(database: Database) -> None:
    async def wrong(connection: Connection) -> None:
        await connection.fetch("SELECT 1 / 0")

    async def unfit(connection: Connection) -> None:
        await KNOWN.rows(connection, least=1, count=1)

    with pytest.raises(asyncpg.DivisionByZeroError):
        await inside(database, wrong)
    with pytest.raises(asyncpg.DataError):
        await inside(database, unfit)
    assert database.gate.is_open


async def test_nothing_listens(unused_tcp_port: int) -> None:
    url = parse_database_url(f"postgresql://u:p@127.0.0.1:{unused_tcp_port}/d")
    database = Database(url, pool_size=1, migrations=ROOT / "alembic")
    with pytest.raises(DatabaseUnavailableError):
        await names(database)
    await database.close()
