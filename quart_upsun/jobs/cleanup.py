"""Old rows go, a few at a time."""

import asyncio
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Executable, and_, delete, func, select
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql import ColumnElement

from quart_upsun.database import Database
from quart_upsun.jobs.models import Job, JobLog
from quart_upsun.jobs.queue import Running, Schedule, Task
from quart_upsun.logging import get_logger

log = get_logger(__name__)

KEEP_LOG = timedelta(days=7)
KEEP_GIVEN_UP = timedelta(days=90)

# Rows of one transaction: no lock is held for long, and no statement runs into its time-out.
BATCH = 1000
TIMEOUT = 600.0  # seconds for all of them; what is left then goes at the next attempt


def oldest(key: InstrumentedAttribute[int], *old: ColumnElement[bool]) -> Delete:
    """Return what deletes a batch of a table's oldest rows.

    Only its beginning is looked at, by the primary key, whatever else is indexed.

    Args:
        key: grows with time.
        old: what a row is that goes.
    """
    batch = select(key).order_by(key).limit(BATCH)
    return delete(key.class_).where(key.in_(batch), *old)


async def forget(database: Database, statement: Delete, *, first: Executable | None = None) -> int:
    """Delete batch after batch, each in its own transaction; return the number of rows.

    Args:
        database: where.
        statement: deletes `BATCH` rows, or the last ones.
        first: what each transaction begins with.
    """
    count = 0
    while True:
        async with database.write() as session:
            if first is not None:
                await session.execute(first)
            result = cast(CursorResult[Any], await session.execute(statement))
        count += result.rowcount
        if result.rowcount < BATCH:
            break
        await asyncio.sleep(0.05)  # others have things to do as well
    if count:
        log.info("old rows deleted", table=str(statement.table), count=count)
    return count


async def forget_jobs(running: Running) -> None:
    """Delete what tells of jobs that ended."""
    is_over = and_(
        JobLog.created < func.now() - KEEP_LOG,
        # Why a job was given up is shown for as long as the job is.
        ~select(Job.id).where(Job.id == JobLog.job_id).exists(),
    )
    statements: list[tuple[Any, ColumnElement[bool]]] = [
        (Job.id, and_(Job.status == "failed", Job.updated < func.now() - KEEP_GIVEN_UP)),
        (JobLog.id, is_over),
    ]
    for key, condition in statements:
        batch = select(key).where(condition).limit(BATCH)
        await forget(running.database, delete(key.class_).where(key.in_(batch)))


FORGET = Schedule(Task("forget old jobs", forget_jobs, timeout=TIMEOUT), "37 3 * * *")
