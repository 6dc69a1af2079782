"""The replica fails in all ways: the primary serves, and it is used again once it is back."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
from sqlalchemy import text
from structlog.testing import LogCapture

from embedded_postgres.replication import Cluster, wait_for_replay
from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.database import replica as module
from quart_upsun.database.log_position import current_reads
from quart_upsun.testing.pgbouncer import pgbouncer
from quart_upsun.tests.replica.conftest import (
    begin_request,
    execute,
    is_on_replica,
    opened,
    read,
    read_directly,
    replica_of,
    until,
    write,
)

Log: TypeAlias = Sequence[MutableMapping[str, Any]]


@contextmanager
def captured_log() -> Iterator[Log]:
    """Collect what the module logs.

    structlog's capture_logs misses a logger that was used before a test configured logging again.
    """
    capture = LogCapture()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "log", structlog.wrap_logger(None, processors=[capture]))
        yield capture.entries


def changes(log: Log) -> list[str]:
    """Return the logged changes of the replica's state."""
    return [str(line["event"]) for line in log if str(line["event"]).startswith("replica")]


def reason(log: Log) -> str:
    return str(next(line["reason"] for line in log if line["event"] == "replica unavailable"))


async def is_used_again(database: Database) -> bool:
    await until(lambda: replica_of(database).is_usable, "usable replica")
    begin_request()
    return await is_on_replica(database)


@asynccontextmanager
async def load(database: Database) -> AsyncIterator[None]:
    """Read concurrently all the time. No read may fail."""
    running = True

    async def act(number: int) -> None:
        begin_request()
        for turn in itertools.count(number):
            reading = (read, read_directly)[turn % 2]
            assert await reading(database, "load") == 1
            await asyncio.sleep(0.002)
            if not running:
                break

    current_reads.set(None)
    position = await write(database, "load", 1)
    begin_request(position)
    await until(lambda: replica_of(database)._replayed >= position, "replay")
    clients = [asyncio.create_task(act(number)) for number in range(6)]
    await asyncio.sleep(0.2)
    try:
        yield
        await asyncio.sleep(0.2)
    finally:
        running = False
        await asyncio.gather(*clients)


async def test_a_killed_replica_is_replaced_by_the_primary(
    database: Database, standby: Cluster
) -> None:
    with captured_log() as log:
        async with load(database):
            standby.kill()
            await until(lambda: "replica unavailable" in changes(log), "loss")
            assert not await is_on_replica(database)
        await asyncio.sleep(1.5)
        standby.start()
        assert await is_used_again(database)
    assert changes(log) == ["replica unavailable", "replica ready"]


async def test_a_restart_fails_no_read(database: Database, standby: Cluster) -> None:
    with captured_log() as log:
        async with load(database):
            standby.stop()
            standby.start()
        assert await is_used_again(database)
    assert changes(log).count("replica unavailable") <= 1


async def test_a_frozen_replica_fails_no_read(database: Database, standby: Cluster) -> None:
    """Reads that wait for its answer run on the primary once it is given up."""
    with captured_log() as log:
        async with load(database):
            standby.freeze()
            await until(lambda: "replica unavailable" in changes(log), "loss")
            lost = time.monotonic()
        # Otherwise they would wait for their own timeout, seven seconds longer.
        assert time.monotonic() - lost < 5
        standby.resume()
        assert await is_used_again(database)
    assert changes(log) == ["replica unavailable", "replica ready"]


async def test_a_promoted_replica_is_not_read(
    database: Database, primary: Cluster, standby: Cluster
) -> None:
    with captured_log() as log:
        standby.promote()
        await until(lambda: not replica_of(database).is_usable, "loss")
        await execute(standby, "INSERT INTO settings_of VALUES ('diverged', 1)")
        begin_request()
        assert await read(database, "diverged") is None
        assert await read_directly(database, "diverged") is None
        await asyncio.sleep(2 * module.POLL_SECONDS)
        assert not replica_of(database).is_usable
    assert changes(log) == ["replica unavailable"]
    assert "promoted" in reason(log)


async def test_a_connection_notices_the_promotion_before_the_next_check(
    database: Database, standby: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 60.0)
    await asyncio.sleep(1.5)  # until the pause between two checks is as long
    current_reads.set(None)
    position = await write(database, "promoted", 1)
    standby.promote()
    await execute(standby, "UPDATE settings_of SET value = 2 WHERE name = 'promoted'")
    replica = replica_of(database)
    replica._replayed, replica._valid_until = position, float("inf")
    await replica.engine.dispose()
    begin_request(position)
    assert await read(database, "promoted") == 1
    assert await read_directly(database, "promoted") == 1


async def test_a_replica_that_is_too_far_behind_is_not_used(
    database: Database, primary: Cluster, standby: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LAG_SECONDS", 2.0)
    with captured_log() as log:
        await standby.reconfigure(recovery_min_apply_delay="1h")
        current_reads.set(None)
        await write(database, "behind", 1)
        await until(lambda: "replica unavailable" in changes(log), "loss")
        begin_request()
        assert await read(database, "behind") == 1
        await standby.reconfigure(recovery_min_apply_delay="0")
        assert await is_used_again(database)
    assert changes(log) == ["replica unavailable", "replica ready"]
    assert "behind" in reason(log)


async def test_a_read_that_the_replay_cancels_runs_on_the_primary(
    database: Database, primary: Cluster, standby: Cluster
) -> None:
    await standby.reconfigure(max_standby_streaming_delay="0")
    await execute(primary, "CREATE TABLE cancelled AS SELECT 1 AS number")
    await wait_for_replay(primary, standby)
    slow = "SELECT count(*), pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END) FROM {}"
    begin_request()

    async def in_session() -> int | None:
        async with database.read() as session:
            found: int | None = await session.scalar(text(slow.format("cancelled")))
        return found

    async def directly() -> int:
        async with database.direct() as connection:
            found: int = await connection.fetchval(slow.format("cancelled"))
        return found

    reading = [asyncio.create_task(in_session()), asyncio.create_task(directly())]
    await asyncio.sleep(0.3)
    await execute(primary, "TRUNCATE cancelled")
    assert await asyncio.gather(*reading) == [0, 0]
    await execute(primary, "DROP TABLE cancelled")


async def test_a_migration_that_is_not_replayed_yet_fails_no_read(
    database: Database, primary: Cluster, standby: Cluster
) -> None:
    await standby.reconfigure(recovery_min_apply_delay="10min")
    await execute(primary, "CREATE TABLE migrated AS SELECT 7 AS number")
    begin_request()
    async with database.read() as session:
        assert await session.scalar(text("SELECT count(*) FROM settings_of")) is not None
        assert await session.scalar(text("SELECT number FROM migrated")) == 7
        assert await session.scalar(text("SELECT pg_is_in_recovery()")) is False
    async with database.direct() as connection:
        assert await connection.fetchval("SELECT number FROM migrated") == 7
    assert database.gate.is_open
    await execute(primary, "DROP TABLE migrated")


async def test_a_session_goes_on_when_its_connection_is_lost(
    database: Database, standby: Cluster
) -> None:
    begin_request()
    async with database.read() as session:
        assert await session.scalar(text("SELECT pg_is_in_recovery()"))
        await execute(
            standby,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'quart-upsun replica'",
        )
        assert not await session.scalar(text("SELECT pg_is_in_recovery()"))
    assert database._slots._value == 4


async def test_a_slow_query_is_not_repeated_on_the_primary(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_request()
    async with database.read() as session:
        await session.execute(text("SET statement_timeout = '50ms'"))
        with pytest.raises(DatabaseUnavailableError):
            await session.execute(text("SELECT pg_sleep(5)"))
        assert await session.scalar(text("SELECT pg_is_in_recovery()"))


async def test_a_statement_that_changes_data_runs_on_the_primary(database: Database) -> None:
    begin_request()
    async with database.read() as session:
        await session.execute(text("INSERT INTO settings_of VALUES ('changed', 1)"))
    async with database.read(exact=True) as session:
        changed = text("DELETE FROM settings_of WHERE name = 'changed' RETURNING value")
        assert await session.scalar(changed) == 1


@pytest.mark.parametrize("wrong", ["primary", "template1"])
async def test_another_database_is_not_used(primary: Cluster, standby: Cluster, wrong: str) -> None:
    url = primary.url() if wrong == "primary" else standby.url(wrong)
    with captured_log() as log:
        async with opened(primary.url(), url) as database:
            await until(lambda: bool(changes(log)), "state")
            begin_request()
            assert not await is_on_replica(database)
    assert changes(log) == ["replica unavailable"]
    assert reason(log) == {
        "primary": "it is not a replica, or was promoted",
        "template1": "it is a replica of another database",
    }.get(wrong)


async def test_a_pooler_in_transaction_mode_is_not_used(
    primary: Cluster, standby: Cluster, tmp_path: Path
) -> None:
    """Its connections outlive a restart of the replica, which may then be further behind."""
    with pgbouncer(standby.url(), tmp_path) as bouncer, captured_log() as log:
        async with opened(primary.url(), bouncer.url(standby.url())) as database:
            await until(lambda: bool(changes(log)), "state")
            begin_request()
            assert not await is_on_replica(database)
    assert changes(log) == ["replica unavailable"]
    assert "is a connection pooler in transaction mode" in reason(log)


async def test_a_replica_is_not_needed_at_the_start(primary: Cluster, standby: Cluster) -> None:
    standby.stop()
    with captured_log() as log:
        async with opened(primary.url(), standby.url()) as database:
            await until(lambda: bool(changes(log)), "state")
            begin_request()
            assert not await is_on_replica(database)
            standby.start()
            assert await is_used_again(database)
    assert changes(log) == ["replica unavailable", "replica ready"]
