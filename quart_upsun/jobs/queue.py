"""Tasks and schedules, and enqueueing a job in the transaction of the change it belongs to."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import Executable, bindparam, delete, text
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.compat.pgqueuer import Driver, Queries, change_notice, channel
from quart_upsun.database import Database
from quart_upsun.jobs.models import Job
from quart_upsun.spans import job_headers

# Delays between attempts, about a day in all.
BACKOFF_SECONDS = (30, 120, 600, 3600, 4 * 3600, 6 * 3600, 12 * 3600)

# Built once, with the table: with the model, a job would take twice the CPU time.
_JOBS = Job.metadata.tables[Job.__tablename__]
DELETE_OWN_JOB = (
    delete(_JOBS)
    .where(_JOBS.c.id == bindparam("job"), _JOBS.c.queue_manager_id == bindparam("owner"))
    .returning(_JOBS.c.id)
)


# The INSERT before this fires the trigger that notifies workers, even if it inserts no row.
BRING_FORWARD = text(
    """
    UPDATE pgqueuer
    SET execute_after = least(execute_after, now() + CAST(:after AS interval)),
        priority = greatest(priority, :priority), updated = now()
    WHERE dedupe_key = ANY (:keys) AND status = 'queued'
        AND (execute_after > now() + CAST(:after AS interval) OR priority < :priority)
    """
)
# The trigger does not notify of an UPDATE, so this statement notifies the workers itself.
MAKE_JOBS_DUE = text(
    """
    WITH due AS (
        UPDATE pgqueuer SET execute_after = now()
        WHERE id = ANY (CAST(:ids AS bigint[])) AND status = 'queued' RETURNING id
    )
    SELECT id, pg_notify(:channel, :notice) FROM due
    """
)


class JobError(Exception):
    """An attempt failed for a known reason and will be retried.

    Attributes:
        code: the reason without personal data, for the log. Only administrators see the message.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class PermanentJobError(JobError):
    """A job failed and must not be retried, because a retry would fail in the same way."""


class JobPostponedError(Exception):
    """Requeue the job without counting an attempt, because it has to wait for something.

    Args:
        after: the delay until the job is due again.
        then: awaited once the job is in the queue.
    """

    def __init__(self, after: timedelta, then: Callable[[], Awaitable[None]]) -> None:
        super().__init__(f"postponed by {after}")
        self.after = after
        self.then = then


class JobTakenOverError(Exception):
    """Another worker has finished or restarted the job."""


@dataclass(frozen=True)
class Task:
    """A kind of job.

    A job may run more than once, because its worker can be killed before it records the end. For a
    database change that must happen exactly once, use `JobContext.complete`.
    """

    name: str
    run: Callable[["JobContext"], Awaitable[None]]
    timeout: float = 60.0
    """The time limit of an attempt, in seconds."""
    backoff_seconds: tuple[float, ...] = BACKOFF_SECONDS
    """Delays between attempts, in seconds. A job fails permanently after one more attempt."""
    priority: int = 0
    """Jobs with a higher priority start first."""
    max_concurrent: int = 0
    """The maximum number of running jobs in all processes together; 0 for no limit."""
    logged_fields: tuple[str, ...] = ()
    """Fields of the job's data to log and show to administrators; no personal data."""
    is_kept_after_failure: bool = True
    """Whether a job that failed permanently is kept for administrators, or only logged."""
    on_failure: Callable[["JobContext", str], Awaitable[None]] | None = None
    """Called with the error after the last attempt."""


@dataclass(frozen=True)
class Schedule:
    """A task that runs periodically, once for all instances."""

    task: Task
    cron: str
    """Minute, hour, day of month, month, day of week, in UTC."""


@dataclass(frozen=True)
class JobContext:
    """One attempt at a job."""

    id: int
    data: Mapping[str, Any]
    attempt: int
    """The number of this attempt, starting at 1."""
    database: Database
    owner: str | None = field(repr=False, default=None)
    """The id of the worker that has claimed the job."""
    priority: int = 0
    """The priority of the job, which may differ from its task's."""

    @asynccontextmanager
    async def complete(
        self, first: Executable | None = None, values: Mapping[str, Any] | None = None
    ) -> AsyncIterator[AsyncSession]:
        """Open a transaction that records the effect and the end of the job together.

        Args:
            first: a statement that locks the rows to change. It prevents a deadlock with other
                transactions that change the same rows and then enqueue a job with the same key.
            values: the parameters of `first`.

        Raises:
            JobTakenOverError: another worker has the job; nothing was changed.
        """
        async with self.database.write() as session:
            if first is not None:
                await session.execute(first, values)
            if await session.scalar(DELETE_OWN_JOB, {"job": self.id, "owner": self.owner}) is None:
                raise JobTakenOverError
            yield session


async def enqueue(
    session: AsyncSession,
    task: Task,
    *,
    after: timedelta | None = None,
    key: str | None = None,
    **data: Any,
) -> None:
    """Enqueue a job, which runs once the transaction is committed.

    Args:
        session: a session from `write()`.
        task: the task to run.
        after: the delay until the job is due.
        key: deduplicates jobs: no job is added while another with the same key is queued or
            running. A queued one gets the earlier due time and the higher priority of the two.
        data: the data of the job, stored as JSON. It must not contain secrets.
    """
    await enqueue_many(session, task, [data], after=after, keys=[key])


async def enqueue_many(
    session: AsyncSession,
    task: Task,
    data: list[dict[str, Any]],
    *,
    after: timedelta | None = None,
    keys: list[str | None] | None = None,
) -> None:
    """Enqueue many jobs in one statement; see `enqueue`."""
    count = len(data)
    ids = await Queries(cast(Driver, _SessionDriver(session))).enqueue(
        [task.name] * count,
        [json.dumps(each).encode() for each in data],
        [task.priority] * count,
        execute_after=[after] * count,
        dedupe_key=keys or [None] * count,
        headers=[job_headers()] * count,
        on_conflict="skip",
    )
    if None in ids:  # not added: a job with the same key exists
        values = {"after": after or timedelta(0), "priority": task.priority, "keys": keys}
        await session.execute(BRING_FORWARD, values)


async def make_due(database: Database, ids: list[int]) -> set[int]:
    """Make postponed jobs due now; return the ids of those that were still queued."""
    values = {"ids": ids, "channel": channel(), "notice": change_notice()}
    async with database.read(exact=True) as session:  # one statement in AUTOCOMMIT
        return set(await session.scalars(MAKE_JOBS_DUE, values))


class _SessionDriver:
    """Runs PgQueuer's statements in the transaction of a session.

    SQLAlchemy begins the transaction with the first statement that it executes itself. On the raw
    asyncpg connection, PgQueuer's statements would be committed at once.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        connection = await self._session.connection()
        result = await connection.exec_driver_sql(query, args)
        return [dict(row) for row in result.mappings()]
