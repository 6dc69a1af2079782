"""Jobs that were given up: where they lie until an administrator looks at them."""

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

STATES = {"queued": "waiting", "picked": "running", "failed": "given up"}


class DuplicateJobError(Exception):
    """Another job with the same key waits or runs meanwhile."""


@dataclass(frozen=True)
class FailedJob:
    """A job that is not tried any more."""

    id: int
    task: str
    enqueued_at: datetime
    attempts: int
    reason: str | None
    """Why the last attempt failed; may hold what people typed."""
    data: dict[str, Any]


async def count_jobs(session: AsyncSession) -> list[tuple[str, dict[str, int]]]:
    """Return for each task how many of its jobs are in which state, in the words of `STATES`."""
    query = select(Job.entrypoint, Job.status, func.count()).group_by(Job.entrypoint, Job.status)
    found: dict[str, dict[str, int]] = {}
    for task, status, count in await session.execute(query):
        found.setdefault(task, {})[STATES.get(status, status)] = count
    return sorted(found.items())


async def list_failed_jobs(
    session: AsyncSession, *, before: int | None = None, limit: int
) -> Sequence[FailedJob]:
    """Return jobs that were given up, the newest first.

    Args:
        session: for the query.
        before: only those asked for before the one with this id.
        limit: how many at most.
    """
    reason = (
        select(JobLog.traceback["exception_message"].astext)
        .where(JobLog.job_id == Job.id, JobLog.traceback.is_not(None))
        .order_by(JobLog.created.desc(), JobLog.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        # The last attempt is not counted any more.
        select(Job.id, Job.entrypoint, Job.created, Job.attempts + 1, reason, Job.payload)
        .where(Job.status == "failed")
        .order_by(Job.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(Job.id < before)
    return [
        FailedJob(job_id, task, asked_at, attempts, words, json.loads(payload or b"{}"))
        for job_id, task, asked_at, attempts, words, payload in await session.execute(query)
    ]


async def retry_job(session: AsyncSession, job_id: int) -> str | None:
    """Let a job that was given up begin anew; return its task, None if there is no such job.

    Args:
        session: of `write()`.
        job_id: which.

    Raises:
        DuplicateJobError: it is as good as done by another one.
    """
    again = (
        update(Job)
        .where(Job.id == job_id, Job.status == "failed")
        .values(status="queued", attempts=0, execute_after=func.now(), updated=func.now())
        .returning(Job.entrypoint)
    )
    try:
        task = await session.scalar(again)
    except IntegrityError as error:  # the index of keys is the only one that this can break
        raise DuplicateJobError from error
    # The trigger of the table says nothing of an UPDATE.
    await session.execute(select(func.pg_notify(channel(), change_notice())))
    return task


async def delete_failed_job(session: AsyncSession, job_id: int) -> str | None:
    """Forget a job that was given up; return its task, None if there is no such job."""
    gone = delete(Job).where(Job.id == job_id, Job.status == "failed").returning(Job.entrypoint)
    task = await session.scalar(gone)
    if task is not None:
        await session.execute(delete(JobLog).where(JobLog.job_id == job_id))
    return task
