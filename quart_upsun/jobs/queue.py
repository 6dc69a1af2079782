"""What can be done in the background, and how to ask for it: in the transaction it belongs to."""

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

# Seconds from one attempt to the next, about a day in all.
BACKOFF_SECONDS = (30, 120, 600, 3600, 4 * 3600, 6 * 3600, 12 * 3600)

# Made once, and of the table: by way of the model it takes a job's time at the processor twice.
_JOBS = Job.metadata.tables[Job.__tablename__]
DELETE_OWN_JOB = (
    delete(_JOBS)
    .where(_JOBS.c.id == bindparam("job"), _JOBS.c.queue_manager_id == bindparam("owner"))
    .returning(_JOBS.c.id)
)


# Workers are told by the trigger of the table: the INSERT before this fires it, rows or none.
BRING_FORWARD = text(
    """
    UPDATE pgqueuer
    SET execute_after = least(execute_after, now() + CAST(:after AS interval)),
        priority = greatest(priority, :priority), updated = now()
    WHERE dedupe_key = ANY (:keys) AND status = 'queued'
        AND (execute_after > now() + CAST(:after AS interval) OR priority < :priority)
    """
)
# The trigger says nothing of an UPDATE, so the workers are told here.
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
    """An attempt failed for a known reason.

    Attributes:
        code: the reason without what it was about, for the log; the words are for administrators.
    """

    def __init__(self, words: str, code: str) -> None:
        super().__init__(words)
        self.code = code


class PermanentJobError(JobError):
    """Another attempt would end the same way."""


class JobPostponedError(Exception):
    """The job has to wait for something. It goes back into the queue, and no attempt is counted.

    Args:
        after: when it is due again.
        then: awaited once it is in the queue.
    """

    def __init__(self, after: timedelta, then: Callable[[], Awaitable[None]]) -> None:
        super().__init__(f"postponed by {after}")
        self.after = after
        self.then = then


class JobTakenOverError(Exception):
    """The job was done, or begun again, by somebody else."""


@dataclass(frozen=True)
class Task:
    """A kind of job.

    It may be run more than once: a worker can be killed after its effect and before the note of
    it. Who wants an effect in the database exactly once, makes it in `Running.complete`.
    """

    name: str
    run: Callable[["JobContext"], Awaitable[None]]
    timeout: float = 60.0
    """Seconds for one attempt."""
    backoff_seconds: tuple[float, ...] = BACKOFF_SECONDS
    """Seconds from one attempt to the next; after as many again it is given up."""
    priority: int = 0
    """Higher ones are begun first."""
    max_concurrent: int = 0
    """How many are under way at the same time, in all processes together; 0 for any number."""
    logged_fields: tuple[str, ...] = ()
    """What of its data the log and administrators are told: nothing that is about people."""
    is_kept_after_failure: bool = True
    """Whether administrators see it after its last attempt; otherwise only the log tells of it."""
    on_failure: Callable[["JobContext", str], Awaitable[None]] | None = None
    """Told why, after the last attempt."""


@dataclass(frozen=True)
class Schedule:
    """A task that is due again and again, once for all instances."""

    task: Task
    cron: str
    """Minute, hour, day of month, month, day of week, in UTC."""


@dataclass(frozen=True)
class JobContext:
    """One attempt at a job."""

    id: int
    data: Mapping[str, Any]
    attempt: int
    """From 1."""
    database: Database
    owner: str | None = field(repr=False, default=None)
    """Which worker has it."""
    priority: int = 0
    """The job's own, which may differ from its task's."""

    @asynccontextmanager
    async def complete(
        self, first: Executable | None = None, values: Mapping[str, Any] | None = None
    ) -> AsyncIterator[AsyncSession]:
        """Give a transaction that ends the job with its effect, both or neither.

        Args:
            first: locks the rows that the effect changes, if other transactions change them and
                then enqueue a job with this one's key. Without it, each would wait for the other.
            values: of its parameters.

        Raises:
            JobTakenOverError: somebody else has it by now; nothing was changed.
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
    """Ask for a job: it runs once the transaction is committed, or never.

    Args:
        session: of `write()`.
        task: what to do.
        after: not before this time has passed.
        key: while a job with the same key waits or runs, no other is added. One that waits, such as
            to be retried, takes the sooner time and the higher priority of the two.
        data: what the task is given, as JSON; no secrets, it may lie here for a while.
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
    """Ask for many jobs in one statement; see `enqueue`."""
    count = len(data)
    ids = await Queries(cast(Driver, _SessionDriver(session))).enqueue(
        [task.name] * count,
        [json.dumps(each).encode() for each in data],
        [task.priority] * count,
        execute_after=[after] * count,
        dedupe_key=keys or [None] * count,
        on_conflict="skip",
    )
    if None in ids:  # not added, because their keys are taken
        values = {"after": after or timedelta(0), "priority": task.priority, "keys": keys}
        await session.execute(BRING_FORWARD, values)


async def make_due(database: Database, ids: list[int]) -> set[int]:
    """Let postponed jobs run now; return those that were still waiting."""
    values = {"ids": ids, "channel": channel(), "notice": change_notice()}
    async with database.read() as session:  # one statement, which is a transaction of its own
        return set(await session.scalars(MAKE_JOBS_DUE, values))


class _SessionDriver:
    """Lets PgQueuer's statements run in a session's transaction.

    On the session's own connection they would be committed at once, unless SQLAlchemy had run
    something before: it begins the transaction with its own first statement.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        connection = await self._session.connection()
        result = await connection.exec_driver_sql(query, args)
        return [dict(row) for row in result.mappings()]
