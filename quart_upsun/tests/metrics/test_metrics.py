"""Histograms, totals, the collector, the roll-up and the time spans."""

import asyncio
import json
import math
import random
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quart import Quart
from sqlalchemy import func, insert, select, text

from embedded_postgres import postgres, stopped
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.measure import JobMeasure, RequestMeasure
from quart_upsun.metrics import collector as module
from quart_upsun.metrics.collector import Collector
from quart_upsun.metrics.histogram import BOUNDS, RATIO, bucket_of, percentile
from quart_upsun.metrics.models import MetricsDeploy, MetricsHour, MetricsMinute
from quart_upsun.metrics.rollup import roll_up_hours
from quart_upsun.metrics.series import read_last_hour, read_two_weeks
from quart_upsun.metrics.totals import Totals, from_json, totals_of_processes
from quart_upsun.testing.databases import set_read_only, writable_again
from quart_upsun.testing.servers import eventually, migrate
from quart_upsun.tests.sample import Settings, create_app

HOUR = timedelta(hours=1)
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)

seconds = st.floats(min_value=0.0011, max_value=60, allow_nan=False)


@given(values=st.lists(seconds, min_size=1, max_size=200), share=st.floats(0.01, 1))
def test_percentiles_are_close_to_the_exact_values(values: list[float], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    found = percentile(Counter(map(bucket_of, values)), share)
    assert found is not None
    assert exact / (RATIO * 1.0001) <= found <= exact * RATIO * 1.0001


@given(first=st.lists(seconds), second=st.lists(seconds), share=st.floats(0.01, 1))
def test_histograms_add_up(first: list[float], second: list[float], share: float) -> None:
    added = Counter(map(bucket_of, first)) + Counter(map(bucket_of, second))
    assert percentile(added, share) == percentile(Counter(map(bucket_of, first + second)), share)


@pytest.mark.parametrize("value", [0.0, 0.0009, 70.0, 1e9])
def test_values_outside_of_the_bounds_have_buckets(value: float) -> None:
    found = percentile({bucket_of(value): 1}, 0.5)
    assert found is not None
    assert found <= BOUNDS[0] if value < 1 else found > BOUNDS[-1]


def test_empty_histogram_has_no_percentile() -> None:
    assert percentile({}, 0.5) is None


def request(took: float = 0.1, status: int = 200, route: str | None = "/") -> RequestMeasure:
    measure = RequestMeasure("GET", "id", "trace", route=route, status=status, seconds=took)
    measure.database.queries = 2
    measure.database.seconds = took / 2
    return measure


def totals(count: int = 1, **options: float) -> Totals:
    result = Totals()
    for _ in range(count):
        result.count_request(request())
    for name, value in options.items():
        setattr(result.gauges, name, value)
    return result


def test_totals_survive_json() -> None:
    original = totals(3, memory_bytes=5)
    original.count_job(JobMeasure("mail", 1, 1, 2.0, "trace", outcome="failed", seconds=1.0))
    assert from_json(json.loads(json.dumps(asdict(original)))) == original


def test_processes_add_up() -> None:
    both = totals_of_processes(
        [
            totals(2, memory_bytes=10, pool_in_use=3, loop_lag_seconds=0.2, queued_jobs=7),
            totals(3, memory_bytes=20, pool_in_use=1, loop_lag_seconds=0.1, queued_jobs=7),
        ]
    )
    assert both.requests.requests == 5
    assert (both.gauges.memory_bytes, both.gauges.pool_in_use) == (30, 4)
    # The lag and the queue are no sums.
    assert (both.gauges.loop_lag_seconds, both.gauges.queued_jobs) == (0.2, 7)


def test_stream_is_counted_separately() -> None:
    result = Totals()
    measure = request(took=900)
    measure.is_stream = True
    result.count_request(measure)
    assert (result.streams, result.requests.requests) == (1, 0)


def test_requests_without_route_share_a_name() -> None:
    result = Totals()
    for _ in range(3):
        result.count_request(request(route=None, status=404))
    assert {*result.routes} == {"GET no route"}


@pytest.fixture
def collector(app: Quart, database: Database) -> Collector:
    """A collector of its own, as in another process."""
    return new_collector(app)


def new_collector(app: Quart, release: str = "") -> Collector:
    state = app.extensions["quart_upsun"]
    collector = Collector(state.database, state.live, release)
    collector.start()
    return collector


async def last_hour_requests(database: Database) -> int:
    async with database.read() as session:
        return (await read_last_hour(session, datetime.now(UTC))).total.requests.requests


async def test_processes_write_rows_that_add_up(app: Quart, database: Database) -> None:
    first, second = new_collector(app), new_collector(app)
    first.on_request(request(0.2, 503))
    second.on_request(request(0.1))
    second.on_job(JobMeasure("mail", 1, 1, 0.5, "trace", outcome="failed"))
    for each in (first, second, first):  # writing again does not count again
        assert await each.flush(5)
    async with database.read() as session:
        span = await read_last_hour(session, datetime.now(UTC))
    total = span.total
    assert (total.requests.requests, total.requests.errors, total.requests.queries) == (2, 1, 4)
    assert total.tasks["mail"].failed == 1
    assert span.processes == 2


async def test_fork_gets_a_key_of_its_own(app: Quart, database: Database) -> None:
    collector = new_collector(app)
    collector.on_request(request())
    assert await collector.flush(5)
    collector.start()  # as in a forked process
    collector.on_request(request())
    assert await collector.flush(5)
    assert await last_hour_requests(database) == 2


async def test_queue_and_gauges_are_written(
    app: Quart, database: Database, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.01)
    async with database.write() as session:
        await session.execute(
            text(
                "INSERT INTO pgqueuer (priority, status, entrypoint, execute_after)"
                " VALUES (0, 'queued', 'mail', now() - interval '90 seconds'),"
                " (0, 'queued', 'mail', now() + interval '1 hour')"
            )
        )
    sampling = asyncio.create_task(collector.sample())
    async with database.direct():
        await eventually(lambda: collector._now().gauges.pool_in_use >= 1, "sample")
    sampling.cancel()
    with suppress(asyncio.CancelledError):
        await sampling
    assert await collector.flush(5)
    async with database.read() as session:
        newest = (await read_last_hour(session, datetime.now(UTC))).newest
    assert newest is not None
    gauges = newest.gauges
    assert gauges.queued_jobs == 1  # the other job is not due
    assert 90 <= gauges.oldest_job_seconds < 200
    assert gauges.pool_in_use >= 1
    assert gauges.pool_size == database.pool_size
    assert gauges.memory_bytes > 10_000_000


async def test_unavailable_database_keeps_the_metrics(settings: Settings) -> None:
    port = random.randint(1, 9)  # noqa: S311
    url = parse_database_url(f"postgresql://nobody@127.0.0.1:{port}/none")
    app = create_app(settings.model_copy(update={"database_url": url}))
    collector = new_collector(app)
    collector.on_request(request())
    assert not await collector.flush(5)
    async with app.test_app():
        assert (await app.test_client().get("/about/")).status_code == 200
    # The database is back.
    working = create_app(settings)
    collector._database = working.extensions["quart_upsun"].database
    assert await collector.flush(5)
    assert await last_hour_requests(collector._database) == 1
    await collector._database.close()


async def test_outage_keeps_only_the_last_minutes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = parse_database_url("postgresql://nobody@127.0.0.1:9/none")
    collector = new_collector(create_app(settings.model_copy(update={"database_url": url})))
    for minute in range(30):
        monkeypatch.setattr("time.time", lambda minute=minute: 1e9 + 60 * minute)
        collector.on_request(request())
        await collector.flush(5)
    assert len(collector._minutes) <= module.MAX_PENDING_MINUTES


async def test_read_only_database_is_no_error(
    database_url: str, database: Database, collector: Collector
) -> None:
    collector.on_request(request())
    await set_read_only(database_url, "on")
    assert not await collector.flush(5)
    assert database.is_read_only
    await writable_again(database_url)
    async with asyncio.timeout(30):
        while not await collector.flush(5):  # noqa: ASYNC110 "read-only" is cached for a second
            await asyncio.sleep(0.1)
    assert await last_hour_requests(database) == 1


async def test_deploys_are_recorded_once(app: Quart, database: Database) -> None:
    for release in ("one", "one", "two", "two", "one"):
        collector = new_collector(app, release)
        collector.on_request(request())
        assert await collector.flush(5)
        async with database.write() as session:
            await session.execute(text("UPDATE metrics_deploys SET at = at - interval '1 minute'"))
    async with database.read() as session:
        span = await read_last_hour(session, datetime.now(UTC))
        rows = await session.scalar(select(func.count()).select_from(MetricsDeploy))
    assert [each.release for each in span.deploys] == ["one", "two", "one"]
    assert rows == 3


async def test_processes_that_start_at_once_are_one_deploy(database: Database) -> None:
    now = datetime.now(UTC)
    async with database.write() as session:
        for minutes_ago in (3, 2):  # the minute changed between their starts
            at = now - timedelta(minutes=minutes_ago)
            await session.execute(insert(MetricsDeploy).values(at=at, release="one"))
    async with database.read() as session:
        span = await read_last_hour(session, now)
    assert [each.at for each in span.deploys] == [now - timedelta(minutes=3)]


async def add_minute(database: Database, at: datetime, count: int, process: str = "a") -> None:
    data = json.loads(json.dumps(asdict(totals(count, memory_bytes=100, pool_in_use=count))))
    async with database.write() as session:
        await session.execute(insert(MetricsMinute).values(at=at, process=process, data=data))


@pytest.fixture
async def minutes(database: Database) -> None:
    """Two processes in the hour before noon, and one at noon."""
    for minute, process, count in ((5, "a", 1), (5, "b", 2), (59, "a", 4)):
        await add_minute(database, NOON - HOUR + timedelta(minutes=minute), count, process)
    await add_minute(database, NOON, 8)


async def test_roll_up_adds_complete_hours(database: Database, minutes: None) -> None:
    for _ in range(2):  # again changes nothing
        await roll_up_hours(database, NOON + timedelta(minutes=7))
    async with database.read() as session:
        rows = (await session.execute(select(MetricsHour.at, MetricsHour.minutes))).all()
        span = await read_two_weeks(session, NOON + timedelta(minutes=7))
    assert rows == [(NOON - HOUR, 2)]
    before, current = span.totals[-2:]
    assert before is not None
    assert current is not None
    assert (before.requests.requests, current.requests.requests) == (7, 8)
    # Processes add up; of the minutes, the larger counts.
    assert (before.gauges.memory_bytes, before.gauges.pool_in_use) == (200, 4)


async def test_late_minutes_are_added(database: Database, minutes: None) -> None:
    await roll_up_hours(database, NOON + timedelta(minutes=7))
    await add_minute(database, NOON - timedelta(minutes=2), 100)
    await roll_up_hours(database, NOON + HOUR + timedelta(minutes=7))
    async with database.read() as session:
        span = await read_two_weeks(session, NOON + HOUR)
    assert span.total.requests.requests == 115


async def test_lost_minutes_do_not_shrink_an_hour(database: Database, minutes: None) -> None:
    await roll_up_hours(database, NOON + timedelta(minutes=7))
    async with database.write() as session:  # a crash empties an unlogged table
        await session.execute(text("TRUNCATE metrics_minutes"))
    await add_minute(database, NOON - timedelta(minutes=1), 1)
    await roll_up_hours(database, NOON + timedelta(minutes=8))
    async with database.read() as session:
        span = await read_two_weeks(session, NOON + timedelta(minutes=8))
    assert span.total.requests.requests == 7


async def test_old_rows_are_deleted(database: Database) -> None:
    for hours in (0, 1, 2, 3, 5):
        await add_minute(database, NOON - hours * HOUR, 1)
    async with database.write() as session:
        for days in (13, 16):
            at = NOON - timedelta(days=days)
            await session.execute(insert(MetricsDeploy).values(at=at, release="r"))
            await session.execute(insert(MetricsHour).values(at=at, minutes=1, data={}))
    await roll_up_hours(database, NOON + timedelta(minutes=7))
    async with database.read() as session:
        oldest = await session.scalar(select(func.min(MetricsMinute.at)))
        hours_kept = (await session.scalars(select(MetricsHour.at).order_by(MetricsHour.at))).all()
        deploys = await session.scalar(select(func.count()).select_from(MetricsDeploy))
    assert oldest == NOON - 2 * HOUR
    assert [*hours_kept] == [NOON - timedelta(days=13), *(NOON - h * HOUR for h in (5, 3, 2, 1))]
    assert deploys == 1


async def test_metrics_can_be_off(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"metrics": False, "request_log": "off"}))
    assert app.extensions["quart_upsun"].observers == []


async def test_running_application_writes_at_shutdown(
    settings: Settings, database: Database
) -> None:
    app = create_app(settings)
    async with app.test_app():
        assert (await app.test_client().get("/rows/")).status_code == 200
    assert await last_hour_requests(database) == 1


async def test_tables_have_a_few_megabytes(database: Database) -> None:
    """Four processes, each with 40 busy routes in every minute."""
    busy = Totals()
    for route in range(40):
        for took in range(15):
            busy.count_request(request(took=0.001 * 1.3**took, route=f"/some/path/<name>/{route}/"))
    values = {"data": json.dumps(asdict(busy))}
    async with database.write() as session:
        await session.execute(
            text(
                "INSERT INTO metrics_minutes SELECT at, process, CAST(:data AS jsonb) FROM"
                " generate_series(now() - interval '3 hours', now(), '1 minute') AS at,"
                " unnest(ARRAY['a', 'b', 'c', 'd']) AS process"
            ),
            values,
        )
        await session.execute(
            text(
                "INSERT INTO metrics_hours SELECT at, 60, CAST(:data AS jsonb) FROM"
                " generate_series(now() - interval '15 days', now(), '1 hour') AS at"
            ),
            values,
        )
    async with database.read() as session:
        size = await session.scalar(
            text(
                "SELECT pg_total_relation_size('metrics_minutes')"
                " + pg_total_relation_size('metrics_hours')"
            )
        )
    assert size < 6_000_000, size


async def test_a_standby_server_has_hours_only(tmp_path: Path) -> None:
    """It cannot read unlogged tables."""
    with postgres(tmp_path) as url:
        await migrate(url)
        database = Database(parse_database_url(url), pool_size=1)
        noon = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - HOUR
        async with database.write() as session:
            data = json.loads(json.dumps(asdict(totals(3))))
            session.add(MetricsHour(at=noon, minutes=60, data=data))
        await database.close()
    with stopped(tmp_path):
        (tmp_path / "data" / "standby.signal").touch()
    with postgres(tmp_path) as url:
        database = Database(parse_database_url(url), pool_size=1)
        async with database.read() as session:
            assert await session.scalar(text("SELECT pg_is_in_recovery()"))
            span = await read_two_weeks(session, datetime.now(UTC))
            assert span.total.requests.requests == 3
            span = await read_last_hour(session, datetime.now(UTC))
            assert (span.total.requests.requests, span.processes) == (0, 0)
        await database.close()
