"""Replacements for PgQueuer's statements: only the worker that has a job may finish it."""

import asyncio
from datetime import timedelta
from typing import Any

from quart_upsun.compat.pgqueuer import (
    JOB_STATUS,
    Job,
    Queries,
    QueueEntrypoint,
    RetryRequested,
    TracebackRecord,
    change_notice,
    channel,
)
from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.jobs.connection import CONNECTION_ERRORS, ReconnectingDriver
from quart_upsun.jobs.queue import JobPostponedError
from quart_upsun.switches.state import Switches

# With more jobs than this waiting for a pooled connection, no new ones are started. Jobs that wait
# for the network do not count; there can be a thousand of them.
MAX_WAITING_JOBS = 20

# PgQueuer compares only the id. A worker that has missed its heartbeats would then finish a job
# that another worker has restarted, whose effect would be lost. Of the failed jobs with the same
# key, such as a schedule's, only the latest is kept.
FINISH_JOBS = """
WITH ended AS (
    SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::pgqueuer_status[], $4::jsonb[])
        AS ended (id, owner, status, traceback)
), deleted AS (
    DELETE FROM pgqueuer AS job USING ended
    WHERE job.id = ended.id AND job.queue_manager_id = ended.owner AND ended.status <> 'failed'
    RETURNING job.id, job.entrypoint, job.priority, ended.status, ended.traceback
), held AS (
    UPDATE pgqueuer AS job SET status = 'failed', updated = now(), queue_manager_id = NULL
    FROM ended
    WHERE job.id = ended.id AND job.queue_manager_id = ended.owner AND ended.status = 'failed'
    RETURNING job.id, job.entrypoint, job.priority, ended.status, ended.traceback, job.dedupe_key
), replaced AS (
    DELETE FROM pgqueuer AS earlier USING held
    WHERE earlier.status = 'failed' AND earlier.dedupe_key = held.dedupe_key
)
INSERT INTO pgqueuer_log (job_id, entrypoint, priority, status, traceback)
SELECT * FROM deleted
UNION ALL SELECT id, entrypoint, priority, status, traceback FROM held
"""
RETRY_JOB = """
WITH again AS (
    UPDATE pgqueuer
    SET status = 'queued', execute_after = now() + $3::interval, attempts = attempts + $4,
        updated = now(), queue_manager_id = NULL
    WHERE id = $1 AND queue_manager_id = $2
    RETURNING id, entrypoint, priority
)
INSERT INTO pgqueuer_log (job_id, entrypoint, priority, status, traceback)
SELECT id, entrypoint, priority, 'queued', $5::jsonb FROM again
"""


POSTPONE_JOB = """
UPDATE pgqueuer
SET status = 'queued', execute_after = now() + $3::interval, updated = now(),
    queue_manager_id = NULL
WHERE id = $1 AND queue_manager_id = $2
"""


# How often a queue that maintenance or read-only mode has paused looks whether it is over.
PAUSE_SECONDS = 0.25


class RequeueError(RetryRequested):
    """The job is requeued without counting an attempt."""

    def __init__(self, after: timedelta = timedelta(0)) -> None:
        super().__init__(after, "The process ended before the job.")


class JobQueries(Queries):
    """The statements of the queue manager."""

    def __init__(
        self,
        driver: ReconnectingDriver,
        database: Database,
        postponed: dict[int, JobPostponedError],
        switches: Switches,
    ) -> None:
        super().__init__(driver)
        self._database = database
        self._postponed = postponed
        self._switches = switches

    @property
    def is_crowded(self) -> bool:
        return self._database.waiting > MAX_WAITING_JOBS and not self.driver.shutdown.is_set()

    async def dequeue(self, *args: Any, **options: Any) -> list[Job]:
        # A job that is claimed but cannot proceed would be kept from other workers.
        while self.is_crowded:  # noqa: ASYNC110 polling is cheaper than an event per connection
            await asyncio.sleep(0.01)
        await self._switches.wait()
        while self._switches.pauses_jobs and not self.driver.shutdown.is_set():  # noqa: ASYNC110
            await asyncio.sleep(PAUSE_SECONDS)
        return await super().dequeue(*args, **options)

    async def log_jobs(
        self,
        job_status: list[tuple[Job, JOB_STATUS, TracebackRecord | None]],
    ) -> None:
        await self.driver.execute(
            FINISH_JOBS,
            [job.id for job, _, _ in job_status],
            [job.queue_manager_id for job, _, _ in job_status],
            [status for _, status, _ in job_status],
            [record.model_dump_json() if record else None for _, _, record in job_status],
        )

    async def retry_job(
        self, job: Job, delay: timedelta, traceback_record: TracebackRecord | None
    ) -> None:
        record = traceback_record.model_dump_json() if traceback_record else None
        is_requeued = (
            traceback_record is not None
            and traceback_record.exception_type == RequeueError.__name__
        )
        postponed = self._postponed.pop(job.id, None)
        try:
            if postponed:
                await self.driver.execute(POSTPONE_JOB, job.id, job.queue_manager_id, delay)
                await postponed.then()
                return
            await self.driver.execute(
                RETRY_JOB, job.id, job.queue_manager_id, delay, 0 if is_requeued else 1, record
            )
            if is_requeued:  # the trigger of the table does not notify of an UPDATE
                await self.driver.notify(channel(), change_notice())
        except (DatabaseUnavailableError, *CONNECTION_ERRORS):
            # Ignored when the process stops: PgQueuer would mark the job as failed, but it is
            # retried once its heartbeat is missed.
            if not self.driver.shutdown.is_set():
                raise

    async def queued_work(self, entrypoints: list[QueueEntrypoint]) -> int:
        # Otherwise drain mode would wait for jobs that are due later.
        return await self.eligible_queued_work(entrypoints)
