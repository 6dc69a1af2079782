"""Which server a read goes to, and that nobody misses what they have written."""

import asyncio
import random
import time

import pytest
from sqlalchemy import text

from embedded_postgres.replication import Cluster, wait_for_replay
from quart_upsun.database import Database
from quart_upsun.database import replica as module
from quart_upsun.database.log_position import MAX_POSITION, SELECT_POSITION, current_reads
from quart_upsun.tests.replica.conftest import (
    begin_request,
    is_on_replica,
    read,
    read_directly,
    replica_of,
    until,
    write,
)

LONG = "10min"


async def test_reads_of_a_request_go_to_the_replica(database: Database) -> None:
    begin_request()
    assert await is_on_replica(database)
    assert replica_of(database).served_count == 2


async def test_exact_reads_go_to_the_primary(database: Database) -> None:
    begin_request()
    in_recovery = text("SELECT pg_is_in_recovery()")
    async with database.read(exact=True) as session:
        assert not await session.scalar(in_recovery)
    async with database.direct(exact=True) as connection:
        assert not await connection.fetchval(in_recovery.text)


async def test_reads_outside_of_a_request_go_to_the_primary(database: Database) -> None:
    current_reads.set(None)
    assert not await is_on_replica(database)


async def test_reads_after_a_write_of_the_same_request_go_to_the_primary(
    database: Database, standby: Cluster
) -> None:
    await standby.reconfigure(recovery_min_apply_delay=LONG)
    begin_request()
    await write(database, "same", 1)
    assert (await read(database, "same"), await read_directly(database, "same")) == (1, 1)


async def test_changes_of_others_may_be_missing(
    database: Database, primary: Cluster, standby: Cluster
) -> None:
    current_reads.set(None)
    await write(database, "others", 1)
    await wait_for_replay(primary, standby)
    await standby.reconfigure(recovery_min_apply_delay=LONG)
    await write(database, "others", 2)
    begin_request()
    assert (await read(database, "others"), await read_directly(database, "others")) == (1, 1)


async def test_own_changes_are_read_from_the_primary_if_the_replica_is_behind(
    database: Database, standby: Cluster
) -> None:
    await standby.reconfigure(recovery_min_apply_delay=LONG)
    current_reads.set(None)
    position = await write(database, "own", 1)
    begin_request(position)
    assert (await read(database, "own"), await read_directly(database, "own")) == (1, 1)
    assert replica_of(database).is_usable
    assert not await is_on_replica(database)


async def test_a_read_waits_a_moment_for_the_replica(
    database: Database, standby: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 20.0)
    await standby.reconfigure(recovery_min_apply_delay="300ms")
    current_reads.set(None)
    position = await write(database, "waited", 1)
    begin_request(position)
    assert await is_on_replica(database)
    assert await read(database, "waited") == 1


async def test_only_one_read_waits_in_vain(database: Database) -> None:
    """A position that no server has costs its client a short wait, and nobody else anything."""
    begin_request(MAX_POSITION)
    assert not await is_on_replica(database)
    started = time.monotonic()
    for _ in range(20):
        assert not await is_on_replica(database)
    assert time.monotonic() - started < 20 * module.WAIT_SECONDS
    begin_request()
    assert await is_on_replica(database)


async def test_a_connection_checks_the_position_itself(
    database: Database, standby: Cluster
) -> None:
    """A replica that has restarted may be further back than the last check has found."""
    await standby.reconfigure(recovery_min_apply_delay=LONG)
    current_reads.set(None)
    position = await write(database, "restarted", 1)
    replica_of(database)._replayed = MAX_POSITION
    begin_request(position)
    assert await read(database, "restarted") == 1
    replica_of(database)._replayed = MAX_POSITION
    assert await read_directly(database, "restarted") == 1


async def test_own_changes_are_never_missed(database: Database, standby: Cluster) -> None:
    """Concurrent clients with random pauses, while the lag of the replica changes."""
    current_reads.set(None)
    on_replica = 0

    async def act(number: int) -> None:
        nonlocal on_replica
        name, generator = f"client {number}", random.Random(number)  # noqa: S311
        for value in range(60):
            current_reads.set(None)
            position = await write(database, name, value)
            for _ in range(generator.randrange(1, 4)):
                begin_request(position)
                await asyncio.sleep(generator.choice([0, 0.001, 0.02]))
                before = replica_of(database).served_count
                reading = generator.choice([read, read_directly])
                assert await reading(database, name) == value
                on_replica += replica_of(database).served_count > before

    async def change_lag() -> None:
        for delay in ("0", "20ms", "1s") * 100:
            await standby.reconfigure(recovery_min_apply_delay=delay)
            await asyncio.sleep(0.2)

    changing = asyncio.create_task(change_lag())
    await asyncio.gather(*map(act, range(6)))
    changing.cancel()
    assert on_replica > 20  # otherwise this test would show nothing


async def test_the_replica_must_have_what_the_schema_gate_has_seen(
    database: Database, primary: Cluster, standby: Cluster
) -> None:
    """After a migration, or when a preview's data was sanitized, older data is not served."""
    await standby.reconfigure(recovery_min_apply_delay=LONG)
    current_reads.set(None)
    await write(database, "seen", 1)
    database.gate.close()
    begin_request()
    await database.gate.check()
    assert await read(database, "seen") == 1
    assert not replica_of(database).is_usable
    await standby.reconfigure(recovery_min_apply_delay="0")
    await until(lambda: replica_of(database).is_usable, "usable replica")
    begin_request()
    assert await read(database, "seen") == 1


async def test_without_a_replica_no_read_is_routed(primary: Cluster) -> None:
    from quart_upsun.database.url import parse_database_url

    database = Database(parse_database_url(primary.url()), pool_size=1)
    begin_request()
    try:
        assert not await is_on_replica_of_one(database)
    finally:
        await database.close()


async def is_on_replica_of_one(database: Database) -> bool:
    async with database.read() as session:
        return bool(await session.scalar(text("SELECT pg_is_in_recovery()")))


async def test_a_standby_reaches_the_position_of_an_idle_primary(
    database: Database, primary: Cluster, standby: Cluster
) -> None:
    """At the start of a page of the log, too: PostgreSQL reports a position behind its header."""
    current_reads.set(None)
    for _ in range(3):
        async with database.direct(exact=True) as connection:
            await connection.fetchval("SELECT pg_switch_wal()")
            position = await connection.fetchval(SELECT_POSITION)
            reported = await connection.fetchval("SELECT pg_current_wal_insert_lsn()")
        if reported > position:
            break
    assert reported > position, "the position is not at the start of a page"
    await until(lambda: replica_of(database)._replayed >= position, "replay")
