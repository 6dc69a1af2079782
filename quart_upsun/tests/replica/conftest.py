"""Fixtures with a primary and a standby that replays its log."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from sqlalchemy import text

from conftest import migrated_replication
from embedded_postgres.replication import Cluster, create_standby, wait_for_replay
from quart_upsun.database import Database
from quart_upsun.database.log_position import SELECT_POSITION, Reads, current_reads
from quart_upsun.database.replica import Replica
from quart_upsun.database.url import parse_database_url
from quart_upsun.tests.replica.application import CREATE, SELECT, UPSERT

SECONDS = 30.0  # generous, for busy machines


@pytest.fixture(scope="session")
def clusters() -> Iterator[tuple[Cluster, Cluster]]:
    with migrated_replication() as clusters:
        yield clusters


@pytest.fixture
def primary(clusters: tuple[Cluster, Cluster]) -> Cluster:
    return clusters[0]


@pytest.fixture
async def standby(clusters: tuple[Cluster, Cluster]) -> AsyncIterator[Cluster]:
    """A standby that replays at once; afterwards it is as before."""
    primary, standby = clusters
    await execute(primary, CREATE)
    await wait_for_replay(primary, standby)
    before = (standby.data / "postgresql.auto.conf").read_text()
    yield standby
    standby.resume()
    if not (standby.data / "standby.signal").exists():  # promoted
        standby.stop()
        create_standby(primary, standby)
    else:
        (standby.data / "postgresql.auto.conf").write_text(before)
        standby.configure()
    if not standby.processes():
        standby.start()
    await wait_for_replay(primary, standby)


@pytest.fixture
async def database(primary: Cluster, standby: Cluster) -> AsyncIterator[Database]:
    """A database with a usable replica."""
    async with opened(primary.url(), standby.url()) as database:
        await until(lambda: replica_of(database).is_usable, "usable replica")
        yield database


@asynccontextmanager
async def opened(url: str, replica_url: str) -> AsyncIterator[Database]:
    database = Database(
        parse_database_url(url), pool_size=4, replica_url=parse_database_url(replica_url)
    )
    watching = asyncio.create_task(replica_of(database).watch())
    try:
        yield database
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await database.close()


def replica_of(database: Database) -> Replica:
    assert database.replica is not None
    return database.replica


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {SECONDS} s"
        await asyncio.sleep(0.01)


async def execute(cluster: Cluster, statement: str) -> None:
    connection = await asyncpg.connect(cluster.url())
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def begin_request(position: int = 0) -> Reads:
    """Let the reads of this test be those of a request."""
    reads = Reads(position)
    current_reads.set(reads)
    return reads


async def write(database: Database, name: str, value: int) -> int:
    """Write a value in a request of its own, and return the position that its client gets."""
    async with database.write() as session:
        await session.execute(UPSERT, {"name": name, "value": value})
    async with database.direct(exact=True) as connection:
        position: int = await connection.fetchval(SELECT_POSITION)
    return position


async def read(database: Database, name: str) -> int | None:
    async with database.read() as session:
        value: int | None = await session.scalar(text(SELECT.format(name)))
    return value


async def read_directly(database: Database, name: str) -> int | None:
    async with database.direct() as connection:
        value: int | None = await connection.fetchval(SELECT.format(name))
    return value


async def is_on_replica(database: Database) -> bool:
    async with database.read() as session, database.direct() as connection:
        found = {
            await session.scalar(text("SELECT pg_is_in_recovery()")),
            await connection.fetchval("SELECT pg_is_in_recovery()"),
        }
    assert len(found) == 1, "a session and a connection differ"
    return bool(found.pop())
