"""Background jobs: enqueueing, retries, permanent failure, shutdown and schedules."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.queries import Queries
from quart import Quart
from sqlalchemy import select, text, update

from quart_upsun.database import Database
from quart_upsun.jobs import runner as module
from quart_upsun.jobs.connection import ReconnectingDriver
from quart_upsun.jobs.models import Job, JobLog
from quart_upsun.jobs.queue import (
    JobContext,
    PermanentJobError,
    Schedule,
    Task,
    enqueue,
    enqueue_many,
)
from quart_upsun.jobs.runner import Runner
from quart_upsun.testing import runner_of
from quart_upsun.testing.databases import set_read_only, writable_again
from quart_upsun.testing.runners import working

Work = Callable[[JobContext], Awaitable[None]]


class Jobs:
    """Creates, enqueues and runs tasks, and reads the state of the queue."""

    def __init__(self, app: Quart) -> None:
        self.app = app
        self.database: Database = app.extensions["quart_upsun"].database

    def task(self, work: Work, **options: Any) -> Task:
        return Task("test", work, **options)

    async def enqueue(self, task: Task, **data: Any) -> None:
        async with self.database.write() as session:
            await enqueue(session, task, **data)

    def runner(self, *tasks: Task, schedules: tuple[Schedule, ...] = ()) -> Runner:
        return runner_of(self.app, *tasks, *schedules)

    async def run(self, *tasks: Task) -> None:
        await self.runner(*tasks).run_due()

    async def rows(self) -> list[tuple[str, int]]:
        async with self.database.read() as session:
            rows = await session.execute(select(Job.status, Job.attempts).order_by(Job.id))
            return [(status, attempts) for status, attempts in rows]

    async def reasons(self) -> list[str]:
        async with self.database.read() as session:
            logs = await session.scalars(
                select(JobLog.traceback).where(JobLog.traceback.is_not(None)).order_by(JobLog.id)
            )
            return [each["exception_message"] for each in logs if each]

    async def make_due(self) -> None:
        async with self.database.write() as session:
            await session.execute(update(Job).values(execute_after=text("now()")))


@pytest.fixture
def jobs(app: Quart) -> Jobs:
    return Jobs(app)


def logged_events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events that the runner has logged."""
    return [
        record.msg["event"]
        for record in caplog.records
        if isinstance(record.msg, dict) and record.name == module.__name__ and "task" in record.msg
    ]


async def no_op(running: JobContext) -> None:
    """Do nothing."""


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 the condition is in the database
            await asyncio.sleep(0.01)


async def test_migrations_match_the_schema_of_pgqueuer(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        plan = await Queries(AsyncpgDriver(connection)).plan_upgrade()
    finally:
        await connection.close()
    # PgQueuer's plans always include the function, even if it is unchanged.
    assert [each.partition("(")[0] for each in plan.statements] == [
        "CREATE OR REPLACE FUNCTION fn_pgqueuer_changed"
    ]
    assert list(plan.notes) == []


async def test_a_committed_job_runs(jobs: Jobs) -> None:
    seen: list[dict[str, Any]] = []

    async def work(running: JobContext) -> None:
        seen.append(dict(running.data))

    task = jobs.task(work)
    await jobs.enqueue(task, name="Zoë", number=7)
    await jobs.run(task)
    assert seen == [{"name": "Zoë", "number": 7}]
    assert await jobs.rows() == []


async def test_a_rolled_back_job_does_not_exist(jobs: Jobs) -> None:
    """Also if the enqueue is the first statement of the transaction."""
    task = jobs.task(no_op)
    with suppress(RuntimeError):
        async with jobs.database.write() as session:
            await enqueue(session, task)
            raise RuntimeError("roll back")
    assert await jobs.rows() == []


async def test_a_key_deduplicates_jobs(jobs: Jobs) -> None:
    task = jobs.task(no_op)
    for _ in range(3):
        await jobs.enqueue(task, key="same")
    assert await jobs.rows() == [("queued", 0)]
    await jobs.run(task)
    await jobs.enqueue(task, key="same")
    assert await jobs.rows() == [("queued", 0)]


async def test_enqueueing_a_job_that_backs_off_retries_it_at_once(jobs: Jobs) -> None:
    attempts: list[int] = []

    async def work(running: JobContext) -> None:
        attempts.append(running.attempt)
        raise ValueError("failed")

    task = jobs.task(work, backoff_seconds=(3600, 3600))
    await jobs.enqueue(task, key="same")
    await jobs.run(task)
    await jobs.enqueue(task, key="same", after=timedelta(hours=2))
    await jobs.run(task)
    assert attempts == [1]
    await jobs.enqueue(replace(task, priority=5), key="same")
    await jobs.run(task)
    assert attempts == [1, 2]
    async with jobs.database.read() as session:
        assert (await session.scalars(select(Job.priority))).all() == [5]


async def test_a_worker_is_notified_of_a_job_that_is_due_earlier(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_INTERVAL", timedelta(hours=1))
    attempts: list[int] = []

    async def work(running: JobContext) -> None:
        attempts.append(running.attempt)
        raise ValueError("failed")

    async def ran(times: int) -> bool:
        return len(attempts) == times and ("queued", times) in await jobs.rows()

    task = jobs.task(work, backoff_seconds=(3600, 3600))
    async with working(jobs.runner(task)):
        await jobs.enqueue(task, key="same")
        await until(lambda: ran(1))
        await jobs.enqueue(task, key="same")
        await until(lambda: ran(2))


async def test_the_latest_failed_job_of_a_key_is_kept(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        raise PermanentJobError(f"Number {running.data['number']}.", "refused")

    task = jobs.task(work)
    for number in range(3):
        await jobs.enqueue(task, key="same", number=number)
        await jobs.enqueue(task, key=f"another {number}", number=number)
        await jobs.run(task)
    async with jobs.database.read() as session:
        rows = await session.execute(select(Job.dedupe_key, Job.payload).order_by(Job.dedupe_key))
        assert [(key, json.loads(payload or b"")["number"]) for key, payload in rows] == [
            ("another 0", 0),
            ("another 1", 1),
            ("another 2", 2),
            ("same", 2),
        ]


async def test_a_failed_job_that_is_not_kept_is_only_logged(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(running: JobContext) -> None:
        raise ValueError("failed")

    task = jobs.task(work, backoff_seconds=(), is_kept_after_failure=False)
    await jobs.enqueue(task)
    await jobs.run(task)
    assert await jobs.rows() == []
    assert logged_events(caplog) == ["job failed permanently"]
    assert await jobs.reasons() == ["ValueError: failed"]


async def test_a_delayed_job_runs_when_it_is_due(jobs: Jobs) -> None:
    task = jobs.task(no_op)
    await jobs.enqueue(task, after=timedelta(hours=1))
    await jobs.run(task)
    assert await jobs.rows() == [("queued", 0)]
    await jobs.make_due()
    await jobs.run(task)
    assert await jobs.rows() == []


async def test_a_job_is_retried_and_then_fails_permanently(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []
    failures: list[str] = []

    async def work(running: JobContext) -> None:
        attempts.append(running.attempt)
        raise ValueError(f"fai\0led: {running.data['secret_word']}")

    async def on_failure(running: JobContext, message: str) -> None:
        failures.append(message)

    task = jobs.task(work, backoff_seconds=(60, 60), on_failure=on_failure)
    await jobs.enqueue(task, secret_word="swordfish")
    for _ in range(4):
        await jobs.run(task)
        await jobs.make_due()
    assert attempts == [1, 2, 3]
    assert await jobs.rows() == [("failed", 2)]
    assert failures == ["ValueError: failed: swordfish"]
    assert await jobs.reasons() == failures * 3
    assert logged_events(caplog) == [
        "job attempt failed",
        "job attempt failed",
        "job failed permanently",
    ]
    assert "swordfish" not in caplog.text
    assert "test_jobs.py:" in caplog.text


async def test_a_permanent_error_is_not_retried(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        raise PermanentJobError("There is no such thing.", "no such thing")

    task = jobs.task(work)
    await jobs.enqueue(task)
    await jobs.run(task)
    assert await jobs.rows() == [("failed", 0)]
    assert await jobs.reasons() == ["There is no such thing."]


async def test_an_attempt_times_out(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        await asyncio.Event().wait()

    task = jobs.task(work, timeout=0.05)
    await jobs.enqueue(task)
    await jobs.run(task)
    assert await jobs.rows() == [("queued", 1)]
    assert await jobs.reasons() == ["Timed out."]


async def test_the_time_limit_excludes_the_wait_for_the_pool(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        async with running.complete():
            pass

    async def is_waiting_for_the_pool() -> bool:
        return jobs.database.waiting > 0

    task = jobs.task(work, timeout=3)
    await jobs.enqueue(task)
    async with AsyncExitStack() as stack:
        while not jobs.database._slots.locked():
            await stack.enter_async_context(jobs.database.direct())
        run = asyncio.create_task(jobs.run(task))
        await until(is_waiting_for_the_pool)
        await asyncio.sleep(3.1)  # longer than the limit
        assert jobs.database.waiting > 0
    await run
    assert await jobs.rows() == []
    assert await jobs.reasons() == []


async def test_running_jobs_are_requeued_at_shutdown(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHUTDOWN_SECONDS", 0.05)
    started = asyncio.Event()

    async def work(running: JobContext) -> None:
        started.set()
        await asyncio.Event().wait()

    task = jobs.task(work)
    await jobs.enqueue(task)
    async with working(jobs.runner(task)):
        await started.wait()
    assert await jobs.rows() == [("queued", 0)]


async def test_jobs_that_finish_during_shutdown_are_not_requeued(jobs: Jobs) -> None:
    started, finish = asyncio.Event(), asyncio.Event()

    async def work(running: JobContext) -> None:
        started.set()
        await finish.wait()

    task = jobs.task(work)
    await jobs.enqueue(task)
    runner = jobs.runner(task)
    async with working(runner):
        await started.wait()
        runner.stop()
        finish.set()
    assert await jobs.rows() == []


async def test_complete_records_effect_and_end_in_one_transaction(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that another worker has restarted meanwhile has no effect."""
    effects: list[int] = []

    async def work(running: JobContext) -> None:
        if running.data["is_lost"]:
            async with jobs.database.write() as session:
                await session.execute(update(Job).values(queue_manager_id=None))
        async with running.complete():
            effects.append(running.id)

    task = jobs.task(work)
    await jobs.enqueue(task, is_lost=False)
    await jobs.run(task)
    assert len(effects) == 1
    assert await jobs.rows() == []
    await jobs.enqueue(task, is_lost=True)
    await jobs.run(task)
    assert len(effects) == 1
    assert logged_events(caplog) == ["job taken over"]
    assert await jobs.rows() == [("picked", 0)]  # it belongs to the other worker


@pytest.mark.parametrize(
    "error", [None, ValueError("failed"), PermanentJobError("Never.", "never")]
)
async def test_a_worker_that_has_lost_a_job_does_not_change_it(
    jobs: Jobs, error: Exception | None
) -> None:
    """Otherwise the effect of the worker that has the job would be lost."""

    async def work(running: JobContext) -> None:
        async with jobs.database.write() as session:
            await session.execute(update(Job).values(queue_manager_id=uuid.uuid4().hex))
        if error is not None:
            raise error

    task = jobs.task(work)
    await jobs.enqueue(task)
    await jobs.run(task)
    assert await jobs.rows() == [("picked", 0)]


async def test_an_error_in_complete_rolls_back(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        async with running.complete() as session:
            await session.execute(text("SELECT 1 / 0"))

    task = jobs.task(work)
    await jobs.enqueue(task)
    await jobs.run(task)
    assert await jobs.rows() == [("queued", 1)]


async def test_a_schedule_retries_a_job_that_backs_off(jobs: Jobs) -> None:
    attempts: list[int] = []

    async def work(running: JobContext) -> None:
        attempts.append(running.attempt)
        raise RuntimeError("failed")

    task = jobs.task(work, backoff_seconds=(12 * 3600.0,) * 5)
    schedule = Schedule(task, "0 3 * * *")

    async def is_stored() -> bool:
        async with jobs.database.read() as session:
            return bool(await session.scalar(text("SELECT count(*) FROM pgqueuer_schedules")))

    async with working(jobs.runner(schedules=(schedule,))):
        await until(is_stored)
    for ticks in (1, 2, 3):
        async with jobs.database.write() as session:
            await session.execute(text("UPDATE pgqueuer_schedules SET next_run = now()"))

        async def ran(ticks: int = ticks) -> bool:
            return len(attempts) == ticks

        async with working(jobs.runner(schedules=(schedule,))):
            await until(ran)
    assert attempts == [1, 2, 3]


async def test_a_schedule_runs_once_with_several_workers(jobs: Jobs) -> None:
    done: list[int] = []

    async def work(running: JobContext) -> None:
        done.append(running.id)

    task = jobs.task(work)
    schedule = Schedule(task, "0 3 * * *")
    async with (
        working(jobs.runner(schedules=(schedule,))),
        working(jobs.runner(schedules=(schedule,))),
    ):

        async def is_stored() -> bool:
            async with jobs.database.read() as session:
                return bool(await session.scalar(text("SELECT count(*) FROM pgqueuer_schedules")))

        await until(is_stored)
    assert done == []
    async with jobs.database.write() as session:
        await session.execute(text("UPDATE pgqueuer_schedules SET next_run = now()"))
    async with (
        working(jobs.runner(schedules=(schedule,))),
        working(jobs.runner(schedules=(schedule,))),
    ):

        async def ran() -> bool:
            return bool(done)

        await until(ran)
    assert len(done) == 1


async def test_the_queue_reconnects(jobs: Jobs) -> None:
    done: list[int] = []

    async def work(running: JobContext) -> None:
        done.append(running.data["number"])

    async def count(expected: int) -> bool:
        return len(done) == expected

    task = jobs.task(work)
    async with working(jobs.runner(task)):
        await jobs.enqueue(task, number=1)
        await until(lambda: count(1))
        async with jobs.database.read() as session:
            killed = await session.scalar(
                text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'quart-upsun jobs' AND datname = current_database()"
                )
            )
        assert killed == 1
        await jobs.enqueue(task, number=2)
        await until(lambda: count(2))
    assert done == [1, 2]


async def test_many_jobs_run_concurrently(jobs: Jobs) -> None:
    """All jobs run at the same time."""
    running_count, all_running = 0, asyncio.Event()

    async def work(running: JobContext) -> None:
        nonlocal running_count
        running_count += 1
        if running_count == 300:
            all_running.set()
        await all_running.wait()

    task = jobs.task(work)
    async with jobs.database.write() as session:
        await enqueue_many(session, task, [{"number": number} for number in range(300)])
    await jobs.run(task)
    assert await jobs.rows() == []


async def test_a_read_only_database_is_logged_once(
    app: Quart,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Queries still succeed meanwhile, and the driver may be replaced."""
    monkeypatch.setattr("quart_upsun.jobs.connection.RECONNECT_SECONDS", 0.01)
    state, stopping = app.extensions["quart_upsun"], asyncio.Event()
    reported: dict[str, float] = {}
    await set_read_only(database_url, "on")
    for _ in range(2):
        driver = ReconnectingDriver(state.database, stopping, state.identity, reported)
        for _ in range(2):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await driver.execute("DELETE FROM pgqueuer")
            await driver.execute("SELECT")
        await driver.close()
    await writable_again(database_url)
    losses = [
        record.msg["reason"]
        for record in caplog.records
        if isinstance(record.msg, dict) and record.msg["event"] == "job queue connection lost"
    ]
    assert losses.count("ReadOnlySQLTransactionError") == 1
    assert reported["ReadOnlySQLTransactionError"] > 0
