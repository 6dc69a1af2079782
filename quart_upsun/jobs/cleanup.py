"""Old rows go, a few at a time."""

import asyncio
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Executable, and_, delete, func, select
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql import ColumnElement

from quart_upsun.database import Database
from quart_upsun.jobs.models import Job, JobLog
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.logging import get_logger

log = get_logger(__name__)

LOG_RETENTION = timedelta(days=7)
FAILED_JOB_RETENTION = timedelta(days=90)

# Rows of one transaction: no lock is held for long, and no statement runs into its time-out.
BATCH_SIZE = 1000
TIMEOUT_SECONDS = 600.0  # seconds for all of them; what is left then goes at the next attempt


def delete_oldest_statement(key: InstrumentedAttribute[int], *old: ColumnElement[bool]) -> Delete:
    """Return what deletes a batch of a table's oldest rows.

    Only its beginning is looked at, by the primary key, whatever else is indexed.

    Args:
        key: grows with time.
        old: what a row is that goes.
    """
    batch = select(key).order_by(key).limit(BATCH_SIZE)
    return delete(key.class_).where(key.in_(batch), *old)


async def delete_in_batches(
    database: Database, statement: Delete, *, first: Executable | None = None
) -> int:
    """Delete batch after batch, each in its own transaction; return the number of rows.

    Args:
        database: where.
        statement: deletes `BATCH_SIZE` rows, or the last ones.
        first: what each transaction begins with.
    """
    count = 0
    while True:
        async with database.write() as session:
            if first is not None:
                await session.execute(first)
            result = cast(CursorResult[Any], await session.execute(statement))
        count += result.rowcount
        if result.rowcount < BATCH_SIZE:
            break
        await asyncio.sleep(0.05)  # others have things to do as well
    if count:
        log.info("old rows deleted", table=str(statement.table), count=count)
    return count


async def clean_up_jobs(running: JobContext) -> None:
    """Delete what tells of jobs that ended."""
    is_over = and_(
        JobLog.created < func.now() - LOG_RETENTION,
        # Why a job was given up is shown for as long as the job is.
        ~select(Job.id).where(Job.id == JobLog.job_id).exists(),
    )
    statements: list[tuple[Any, ColumnElement[bool]]] = [
        (Job.id, and_(Job.status == "failed", Job.updated < func.now() - FAILED_JOB_RETENTION)),
        (JobLog.id, is_over),
    ]
    for key, condition in statements:
        batch = select(key).where(condition).limit(BATCH_SIZE)
        await delete_in_batches(running.database, delete(key.class_).where(key.in_(batch)))


CLEANUP = Schedule(Task("forget old jobs", clean_up_jobs, timeout=TIMEOUT_SECONDS), "37 3 * * *")
