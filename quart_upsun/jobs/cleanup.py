"""Delete old rows in batches."""

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

# Rows per transaction, so that no lock is held for long and no statement times out.
BATCH_SIZE = 1000
TIMEOUT_SECONDS = 600.0  # for all batches; the next attempt deletes the rest


def delete_oldest_statement(key: InstrumentedAttribute[int], *old: ColumnElement[bool]) -> Delete:
    """Return a statement that deletes a batch of the oldest rows of a table.

    It reads only the start of the primary key's index and needs no other index.

    Args:
        key: the primary key, which must grow with time.
        old: conditions for the rows to delete.
    """
    batch = select(key).order_by(key).limit(BATCH_SIZE)
    return delete(key.class_).where(key.in_(batch), *old)


async def delete_in_batches(
    database: Database, statement: Delete, *, first: Executable | None = None
) -> int:
    """Delete rows in batches, each in a transaction; return the number of rows.

    Args:
        database: the database.
        statement: deletes up to `BATCH_SIZE` rows.
        first: a statement to execute at the start of each transaction.
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
        await asyncio.sleep(0.05)  # lets other work run
    if count:
        log.info("old rows deleted", table=str(statement.table), count=count)
    return count


async def clean_up_jobs(running: JobContext) -> None:
    """Delete old failed jobs and the logs of jobs that have ended."""
    is_old_log = and_(
        JobLog.created < func.now() - LOG_RETENTION,
        # The log of a failed job is kept with the job, because it is shown to administrators.
        ~select(Job.id).where(Job.id == JobLog.job_id).exists(),
    )
    statements: list[tuple[Any, ColumnElement[bool]]] = [
        (Job.id, and_(Job.status == "failed", Job.updated < func.now() - FAILED_JOB_RETENTION)),
        (JobLog.id, is_old_log),
    ]
    for key, condition in statements:
        batch = select(key).where(condition).limit(BATCH_SIZE)
        await delete_in_batches(running.database, delete(key.class_).where(key.in_(batch)))


CLEANUP = Schedule(Task("delete old jobs", clean_up_jobs, timeout=TIMEOUT_SECONDS), "37 3 * * *")
