"""Failed jobs, which are kept until an administrator retries or deletes them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.compat.pgqueuer import change_notice, channel
from quart_upsun.jobs.models import Job, JobLog

STATES = {"queued": "queued", "picked": "running", "failed": "failed"}


class DuplicateJobError(Exception):
    """Another job with the same key is queued or running."""


@dataclass(frozen=True)
class FailedJob:
    """A job whose last attempt failed."""

    id: int
    task: str
    enqueued_at: datetime
    attempts: int
    reason: str | None
    """The error of the last attempt; may contain user input."""
    data: dict[str, Any]


async def count_jobs(session: AsyncSession) -> list[tuple[str, dict[str, int]]]:
    """Count jobs by task and state; the states are the values of `STATES`."""
    query = select(Job.entrypoint, Job.status, func.count()).group_by(Job.entrypoint, Job.status)
    found: dict[str, dict[str, int]] = {}
    for task, status, count in await session.execute(query):
        found.setdefault(task, {})[STATES.get(status, status)] = count
    return sorted(found.items())


async def list_failed_jobs(
    session: AsyncSession, *, before: int | None = None, limit: int
) -> Sequence[FailedJob]:
    """Return failed jobs, newest first.

    Args:
        session: a session.
        before: the cursor: return only jobs with a smaller id.
        limit: the maximum number of jobs.
    """
    reason = (
        select(JobLog.traceback["exception_message"].astext)
        .where(JobLog.job_id == Job.id, JobLog.traceback.is_not(None))
        .order_by(JobLog.created.desc(), JobLog.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        # PgQueuer does not count the last attempt.
        select(Job.id, Job.entrypoint, Job.created, Job.attempts + 1, reason, Job.payload)
        .where(Job.status == "failed")
        .order_by(Job.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(Job.id < before)
    return [
        FailedJob(job_id, task, enqueued_at, attempts, error, json.loads(payload or b"{}"))
        for job_id, task, enqueued_at, attempts, error, payload in await session.execute(query)
    ]


async def retry_job(session: AsyncSession, job_id: int) -> str | None:
    """Retry a failed job; return its task, or None if there is no such job.

    Args:
        session: a session from `write()`.
        job_id: the id of the job.

    Raises:
        DuplicateJobError: another job with the same key is queued or running.
    """
    requeue = (
        update(Job)
        .where(Job.id == job_id, Job.status == "failed")
        .values(status="queued", attempts=0, execute_after=func.now(), updated=func.now())
        .returning(Job.entrypoint)
    )
    try:
        task = await session.scalar(requeue)
    except IntegrityError as error:  # the unique index of keys
        raise DuplicateJobError from error
    # The trigger of the table does not notify workers of an UPDATE.
    await session.execute(select(func.pg_notify(channel(), change_notice())))
    return task


async def delete_failed_job(session: AsyncSession, job_id: int) -> str | None:
    """Delete a failed job; return its task, or None if there is no such job."""
    statement = (
        delete(Job).where(Job.id == job_id, Job.status == "failed").returning(Job.entrypoint)
    )
    task = await session.scalar(statement)
    if task is not None:
        await session.execute(delete(JobLog).where(JobLog.job_id == job_id))
    return task
