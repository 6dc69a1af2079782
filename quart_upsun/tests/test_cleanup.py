"""Cleanup jobs delete old rows."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from quart import Quart
from sqlalchemy import func, insert, select

from quart_upsun.database import Database
from quart_upsun.jobs import cleanup
from quart_upsun.jobs.models import Job, JobLog
from quart_upsun.jobs.queue import JobContext
from quart_upsun.mail import outbox
from quart_upsun.mail.models import Mail
from quart_upsun.security import retention
from quart_upsun.security.models import AuditEvent

MARGIN = timedelta(seconds=10)


@pytest.fixture
def database(app: Quart, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setattr(cleanup, "BATCH_SIZE", 2)
    database: Database = app.extensions["quart_upsun"].database
    return database


async def add(database: Database, model: Any, *rows: dict[str, Any]) -> None:
    async with database.write() as session:
        for row in rows:
            await session.execute(insert(model).values(row))


async def remaining(database: Database, column: Any) -> list[Any]:
    async with database.read() as session:
        return list(await session.scalars(select(column).order_by(column)))


async def clean(database: Database, work: Callable[[JobContext], Awaitable[None]]) -> None:
    await work(JobContext(0, {}, 1, database))


async def test_old_audit_events_are_deleted(database: Database) -> None:
    ages = [*[retention.RETENTION + MARGIN] * 5, retention.RETENTION - MARGIN, timedelta(0)]
    rows = [{"kind": f"age {n}", "at": func.now() - age} for n, age in enumerate(ages)]
    await add(database, AuditEvent, *rows)
    await clean(database, retention.delete_old_events)
    assert await remaining(database, AuditEvent.kind) == ["age 5", "age 6"]


async def test_old_mails_are_deleted(database: Database) -> None:
    old, new = (func.now() - outbox.RETENTION - MARGIN, func.now() - outbox.RETENTION + MARGIN)
    rows: list[dict[str, Any]] = [
        *[{"kind": "old", "created_at": old, "message": "x"}] * 5,
        {"kind": "new", "created_at": new, "message": "x"},
    ]
    await add(database, Mail, *rows)
    await clean(database, outbox.delete_old_mails)
    assert await remaining(database, Mail.kind) == ["new"]


async def test_old_failed_jobs_and_logs_are_deleted(database: Database) -> None:
    def job(number: int, status: str, age: timedelta) -> dict[str, Any]:
        ago = func.now() - age
        row = {"id": number, "status": status, "updated": ago, "created": ago}
        return row | {"priority": 0, "entrypoint": "test"}

    def log(number: int, status: str, age: timedelta) -> dict[str, Any]:
        row = {"job_id": number, "status": status, "created": func.now() - age}
        return row | {"priority": 0, "entrypoint": "test"}

    week, months = cleanup.LOG_RETENTION + MARGIN, cleanup.FAILED_JOB_RETENTION + MARGIN
    await add(
        database,
        Job,
        job(1, "failed", months),
        job(2, "failed", week),
        job(3, "queued", months),
        *(job(number, "failed", months) for number in (4, 5, 6, 7)),
    )
    await add(
        database,
        JobLog,
        log(1, "failed", months),
        log(2, "failed", week),
        log(3, "queued", months),
        log(8, "successful", week),
        log(9, "successful", cleanup.LOG_RETENTION - MARGIN),
    )
    await clean(database, cleanup.clean_up_jobs)
    assert await remaining(database, Job.id) == [2, 3]
    assert await remaining(database, JobLog.job_id) == [2, 3, 9]


async def test_cleanup_tasks_are_registered(app: Quart) -> None:
    tasks = app.extensions["quart_upsun"].jobs.tasks
    assert {
        "delete old mails",
        "delete old jobs",
        "forget old audit events",
    } <= tasks.keys()
