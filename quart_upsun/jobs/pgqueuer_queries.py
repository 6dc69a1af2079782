"""PgQueuer's statements, where ours must differ: only who has a job may say how it ended."""

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

# Jobs that may wait for one of the connections before no more are begun. Those that wait for the
# network do not count: there can be a thousand of them.
MAX_WAITING_JOBS = 20

# PgQueuer asks for the id alone. A worker that was thought dead and is not would take away what
# another one has begun meanwhile, and that one's effect would be lost.
# Of the failed jobs with the same key, such as a schedule's, only the latest is kept.
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


class RequeueError(RetryRequested):
    """The job goes back into the queue, and no attempt is counted."""

    def __init__(self, after: timedelta = timedelta(0)) -> None:
        super().__init__(after, "The process ended before the job.")


class JobQueries(Queries):
    """What the queue manager runs."""

    def __init__(
        self,
        driver: ReconnectingDriver,
        database: Database,
        postponed: dict[int, JobPostponedError],
    ) -> None:
        super().__init__(driver)
        self._database = database
        self._postponed = postponed

    @property
    def is_crowded(self) -> bool:
        return self._database.waiting > MAX_WAITING_JOBS and not self.driver.shutdown.is_set()

    async def dequeue(self, *args: Any, **options: Any) -> list[Job]:
        # What is claimed and cannot go on is kept from other workers, and left behind by a death.
        while self.is_crowded:  # noqa: ASYNC110 not worth an event for each of them
            await asyncio.sleep(0.01)
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
        put_back = (
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
                RETRY_JOB, job.id, job.queue_manager_id, delay, 0 if put_back else 1, record
            )
            if put_back:  # the trigger of the table says nothing of an UPDATE
                await self.driver.notify(channel(), change_notice())
        except (DatabaseUnavailableError, *CONNECTION_ERRORS):
            # Only when the process ends: the job is begun again when its heartbeat is missed.
            # PgQueuer would give it up.
            if not self.driver.shutdown.is_set():
                raise

    async def queued_work(self, entrypoints: list[QueueEntrypoint]) -> int:
        # It would wait for jobs of a later day before it calls a queue done.
        return await self.eligible_queued_work(entrypoints)
