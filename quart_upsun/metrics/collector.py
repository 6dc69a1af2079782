"""Collect the metrics of a process, and write them to the database every few seconds."""

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncGenerator
from contextvars import Context
from dataclasses import asdict
from pathlib import Path

import asyncpg
from quart import Quart

from quart_upsun.database import Connection, Database, DatabaseUnavailableError
from quart_upsun.live.hub import Hub
from quart_upsun.logging import get_logger
from quart_upsun.measure import JobMeasure, RequestMeasure
from quart_upsun.metrics.totals import Gauges, Totals
from quart_upsun.time_limits import shutdown_limit

log = get_logger(__name__)

SAMPLE_SECONDS = 1.0
FLUSH_SECONDS = 12.0
FLUSH_TIMEOUT_SECONDS = 4.0
SHUTDOWN_SECONDS = 1.0  # for the last write
MAX_PENDING_MINUTES = 10  # kept while the database is away; later ones replace older ones

# A row has the totals of the minute so far, so writing it again does no harm.
UPSERT = """
INSERT INTO metrics_minutes (at, process, data)
SELECT to_timestamp(minute), $1, CAST(data AS jsonb) FROM unnest($2::bigint[], $3::text[])
    AS pending (minute, data)
ON CONFLICT (at, process) DO UPDATE SET data = excluded.data
"""
QUEUE = """
SELECT count(*), coalesce(extract(epoch FROM now() - min(execute_after)), 0)
FROM pgqueuer WHERE status = 'queued' AND execute_after <= now()
"""
# Several processes start at once. A release that is deployed again after another one counts again.
ADD_DEPLOY = """
INSERT INTO metrics_deploys (at, release)
SELECT date_trunc('minute', now()), CAST($1 AS text)
WHERE CAST($1 AS text) IS DISTINCT FROM (
    SELECT release FROM metrics_deploys ORDER BY at DESC LIMIT 1
)
ON CONFLICT DO NOTHING
"""


class Collector:
    """The metrics of a process since their last complete minute: an observer.

    Args:
        database: the database.
        live: the open streams.
        release: the id of the release; an empty string if it is unknown.

    Attributes:
        lag_seconds: the last sample of the lag of the event loop.
        queue: the jobs that were due at the last write.
    """

    def __init__(self, database: Database, live: Hub, release: str) -> None:
        self._database = database
        self._live = live
        self._release = release
        self._process = ""
        self._minutes: dict[int, Totals] = {}
        self._is_deploy_recorded = not release
        self.lag_seconds = 0.0
        self.queue = Gauges()

    def on_request(self, measure: RequestMeasure) -> None:
        """Count a request or a stream."""
        self._now().count_request(measure)

    def on_job(self, measure: JobMeasure) -> None:
        """Count an attempt at a job."""
        self._now().count_job(measure)

    def start(self) -> None:
        """Begin as a new process. Forked processes share the collector's state before."""
        self._process = secrets.token_hex(8)
        self._minutes.clear()

    async def sample(self) -> None:
        """Sample the gauges every second until canceled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            self.lag_seconds = max(0.0, loop.time() - due)
            self._now().gauges.maximum(self._gauges(lag=self.lag_seconds))

    async def write(self) -> None:
        """Write the metrics every few seconds until canceled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush(FLUSH_TIMEOUT_SECONDS)

    async def flush(self, seconds: float) -> bool:
        """Write the metrics that are not written; return whether that succeeded.

        Without a database, they are kept for some minutes. The gate and the pool log the outage.

        Args:
            seconds: the time limit.
        """
        now = self._minute()
        for minute in sorted(self._minutes)[:-MAX_PENDING_MINUTES]:
            del self._minutes[minute]
        if not self._minutes or self._database.is_read_only:
            return False
        try:
            async with asyncio.timeout(seconds), self._database.direct(exact=True) as connection:
                await self._write(connection)
        except (DatabaseUnavailableError, TimeoutError, OSError):
            return False
        except asyncpg.PostgresError as error:
            log.warning("writing metrics failed", reason=type(error).__name__)
            return False
        for minute in [each for each in self._minutes if each < now]:
            del self._minutes[minute]
        return True

    async def _write(self, connection: Connection) -> None:
        queued, oldest = await connection.fetchrow(QUEUE)
        self.queue = Gauges(queued_jobs=queued, oldest_job_seconds=float(oldest))
        self._now().gauges.maximum(self.queue)
        if not self._is_deploy_recorded:
            await connection.execute(ADD_DEPLOY, self._release)
            self._is_deploy_recorded = True
        pending = {
            60 * minute: json.dumps(asdict(totals)) for minute, totals in self._minutes.items()
        }
        await connection.execute(UPSERT, self._process, [*pending], [*pending.values()])

    def _minute(self) -> int:
        return int(time.time() // 60)

    def _now(self) -> Totals:
        """Return the totals of this minute."""
        minute = self._minute()
        totals = self._minutes.get(minute)
        if totals is None:
            totals = self._minutes[minute] = Totals()
        return totals

    def _gauges(self, *, lag: float) -> Gauges:
        pool = self._database.engine.pool
        return Gauges(
            pool_size=self._database.pool_size,
            pool_in_use=pool.checkedout(),  # type: ignore[attr-defined]
            pool_waiting=self._database.waiting,
            memory_bytes=resident_memory(),
            open_streams=len(self._live),
            loop_lag_seconds=lag,
        )


def resident_memory() -> int:
    """Return the resident memory of this process in bytes; 0 where it cannot be read."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def init_app(app: Quart, collector: Collector) -> Collector:
    """Collect while the application serves or runs jobs. Write what is left at shutdown."""

    @app.while_serving
    async def collect() -> AsyncGenerator[None, None]:
        collector.start()
        tasks = [
            asyncio.create_task(work, context=Context())
            for work in (collector.sample(), collector.write())
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await collector.flush(shutdown_limit(SHUTDOWN_SECONDS))

    return collector
