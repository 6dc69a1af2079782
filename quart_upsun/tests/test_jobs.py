"""Jobs: asked for in a transaction, done once, tried again, given up, put back."""

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
    """Tasks, what became of them, and the database they are in."""

    def __init__(self, app: Quart) -> None:
        self.app = app
        self.database: Database = app.extensions["quart_upsun"].database

    def task(self, work: Work, **options: Any) -> Task:
        return Task("test", work, **options)

    async def ask(self, task: Task, **data: Any) -> None:
        async with self.database.write() as session:
            await enqueue(session, task, **data)

    def runner(self, *tasks: Task, schedules: tuple[Schedule, ...] = ()) -> Runner:
        return runner_of(self.app, *tasks, *schedules)

    async def do(self, *tasks: Task) -> None:
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


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the runner has logged."""
    return [
        record.msg["event"]
        for record in caplog.records
        if isinstance(record.msg, dict) and "task" in record.msg
    ]


async def nothing(running: JobContext) -> None:
    """Work that has no effect."""


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 what it asks is in the database
            await asyncio.sleep(0.01)


async def test_the_migrations_make_what_the_library_wants(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        plan = await Queries(AsyncpgDriver(connection)).plan_upgrade()
    finally:
        await connection.close()
    # The function is in every plan, whether it differs or not.
    assert [each.partition("(")[0] for each in plan.statements] == [
        "CREATE OR REPLACE FUNCTION fn_pgqueuer_changed"
    ]
    assert list(plan.notes) == []


async def test_what_is_committed_is_done(jobs: Jobs) -> None:
    seen: list[dict[str, Any]] = []

    async def work(running: JobContext) -> None:
        seen.append(dict(running.data))

    task = jobs.task(work)
    await jobs.ask(task, name="Zoë", number=7)
    await jobs.do(task)
    assert seen == [{"name": "Zoë", "number": 7}]
    assert await jobs.rows() == []


async def test_what_is_rolled_back_is_never_done(jobs: Jobs) -> None:
    """Also where asking for the job is the first thing the transaction does."""
    task = jobs.task(nothing)
    with suppress(RuntimeError):
        async with jobs.database.write() as session:
            await enqueue(session, task)
            raise RuntimeError("changed my mind")
    assert await jobs.rows() == []


async def test_one_of_a_key_at_a_time(jobs: Jobs) -> None:
    task = jobs.task(nothing)
    for _ in range(3):
        await jobs.ask(task, key="the one")
    assert await jobs.rows() == [("queued", 0)]
    await jobs.do(task)
    await jobs.ask(task, key="the one")
    assert await jobs.rows() == [("queued", 0)]


async def test_a_job_that_is_asked_for_while_it_backs_off_runs_at_once(jobs: Jobs) -> None:
    attempts: list[int] = []

    async def work(running: JobContext) -> None:
        attempts.append(running.attempt)
        raise ValueError("no good")

    task = jobs.task(work, backoff_seconds=(3600, 3600))
    await jobs.ask(task, key="the one")
    await jobs.do(task)
    await jobs.ask(task, key="the one", after=timedelta(hours=2))
    await jobs.do(task)
    assert attempts == [1]
    await jobs.ask(replace(task, priority=5), key="the one")
    await jobs.do(task)
    assert attempts == [1, 2]
    async with jobs.database.read() as session:
        assert (await session.scalars(select(Job.priority))).all() == [5]


async def test_a_worker_hears_of_a_job_that_is_brought_forward(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_INTERVAL", timedelta(hours=1))
    attempts: list[int] = []

    async def work(running: JobContext) -> None:
        attempts.append(running.attempt)
        raise ValueError("no good")

    async def ran(times: int) -> bool:
        return len(attempts) == times and ("queued", times) in await jobs.rows()

    task = jobs.task(work, backoff_seconds=(3600, 3600))
    async with working(jobs.runner(task)):
        await jobs.ask(task, key="the one")
        await until(lambda: ran(1))
        await jobs.ask(task, key="the one")
        await until(lambda: ran(2))


async def test_of_the_failed_jobs_of_a_key_the_latest_is_kept(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        raise PermanentJobError(f"Number {running.data['number']}.", "refused")

    task = jobs.task(work)
    for number in range(3):
        await jobs.ask(task, key="the one", number=number)
        await jobs.ask(task, key=f"another {number}", number=number)
        await jobs.do(task)
    async with jobs.database.read() as session:
        rows = await session.execute(select(Job.dedupe_key, Job.payload).order_by(Job.dedupe_key))
        assert [(key, json.loads(payload or b"")["number"]) for key, payload in rows] == [
            ("another 0", 0),
            ("another 1", 1),
            ("another 2", 2),
            ("the one", 2),
        ]


async def test_a_job_that_is_not_kept_is_only_told_to_the_log(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(running: JobContext) -> None:
        raise ValueError("no good")

    task = jobs.task(work, backoff_seconds=(), is_kept_after_failure=False)
    await jobs.ask(task)
    await jobs.do(task)
    assert await jobs.rows() == []
    assert said(caplog) == ["job failed permanently"]
    assert await jobs.reasons() == ["ValueError: no good"]


async def test_later(jobs: Jobs) -> None:
    task = jobs.task(nothing)
    await jobs.ask(task, after=timedelta(hours=1))
    await jobs.do(task)
    assert await jobs.rows() == [("queued", 0)]
    await jobs.make_due()
    await jobs.do(task)
    assert await jobs.rows() == []


async def test_failures_are_tried_again_until_they_are_given_up(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []
    told: list[str] = []

    async def work(running: JobContext) -> None:
        attempts.append(running.attempt)
        raise ValueError(f"no \0 good: {running.data['secret_word']}")

    async def given_up(running: JobContext, words: str) -> None:
        told.append(words)

    task = jobs.task(work, backoff_seconds=(60, 60), on_failure=given_up)
    await jobs.ask(task, secret_word="swordfish")
    for _ in range(4):
        await jobs.do(task)
        await jobs.make_due()
    assert attempts == [1, 2, 3]
    assert await jobs.rows() == [("failed", 2)]
    assert told == ["ValueError: no  good: swordfish"]
    assert await jobs.reasons() == told * 3
    assert said(caplog) == ["job attempt failed", "job attempt failed", "job failed permanently"]
    assert "swordfish" not in caplog.text
    assert "test_jobs.py:" in caplog.text


async def test_a_refusal_is_final(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        raise PermanentJobError("There is no such thing.", "no such thing")

    task = jobs.task(work)
    await jobs.ask(task)
    await jobs.do(task)
    assert await jobs.rows() == [("failed", 0)]
    assert await jobs.reasons() == ["There is no such thing."]


async def test_a_time_limit(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        await asyncio.Event().wait()

    task = jobs.task(work, timeout=0.05)
    await jobs.ask(task)
    await jobs.do(task)
    assert await jobs.rows() == [("queued", 1)]
    assert await jobs.reasons() == ["Timed out."]


async def test_the_wait_for_a_connection_is_not_part_of_the_time_limit(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        async with running.complete():
            pass

    async def all_are_busy() -> bool:
        return jobs.database.waiting > 0

    task = jobs.task(work, timeout=0.5)
    await jobs.ask(task)
    async with AsyncExitStack() as stack:
        while not jobs.database._slots.locked():
            await stack.enter_async_context(jobs.database.direct())
        doing = asyncio.create_task(jobs.do(task))
        await until(all_are_busy)
        await asyncio.sleep(0.6)  # longer than the limit
        assert jobs.database.waiting > 0
    await doing
    assert await jobs.rows() == []
    assert await jobs.reasons() == []


async def test_what_is_under_way_at_the_end_is_put_back(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHUTDOWN_SECONDS", 0.05)
    begun = asyncio.Event()

    async def work(running: JobContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = jobs.task(work)
    await jobs.ask(task)
    async with working(jobs.runner(task)):
        await begun.wait()
    assert await jobs.rows() == [("queued", 0)]


async def test_what_ends_in_time_is_not_put_back(jobs: Jobs) -> None:
    begun, ending = asyncio.Event(), asyncio.Event()

    async def work(running: JobContext) -> None:
        begun.set()
        await ending.wait()

    task = jobs.task(work)
    await jobs.ask(task)
    runner = jobs.runner(task)
    async with working(runner):
        await begun.wait()
        runner.stop()
        ending.set()
    assert await jobs.rows() == []


async def test_effect_and_end_are_one_transaction(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that somebody else has begun again meanwhile has no effect, and says nothing."""
    effects: list[int] = []

    async def work(running: JobContext) -> None:
        if running.data["stolen"]:
            async with jobs.database.write() as session:
                await session.execute(update(Job).values(queue_manager_id=None))
        async with running.complete():
            effects.append(running.id)

    task = jobs.task(work)
    await jobs.ask(task, stolen=False)
    await jobs.do(task)
    assert len(effects) == 1
    assert await jobs.rows() == []
    await jobs.ask(task, stolen=True)
    await jobs.do(task)
    assert len(effects) == 1
    assert said(caplog) == ["job taken over"]
    assert await jobs.rows() == [("picked", 0)]  # it is theirs


@pytest.mark.parametrize(
    "error", [None, ValueError("no good"), PermanentJobError("Never.", "never")]
)
async def test_who_has_lost_a_job_does_not_say_how_it_ended(
    jobs: Jobs, error: Exception | None
) -> None:
    """Somebody else does it now, whose effect would be lost."""

    async def work(running: JobContext) -> None:
        async with jobs.database.write() as session:
            await session.execute(update(Job).values(queue_manager_id=uuid.uuid4().hex))
        if error is not None:
            raise error

    task = jobs.task(work)
    await jobs.ask(task)
    await jobs.do(task)
    assert await jobs.rows() == [("picked", 0)]


async def test_complete_fails_as_a_whole(jobs: Jobs) -> None:
    async def work(running: JobContext) -> None:
        async with running.complete() as session:
            await session.execute(text("SELECT 1 / 0"))

    task = jobs.task(work)
    await jobs.ask(task)
    await jobs.do(task)
    assert await jobs.rows() == [("queued", 1)]


async def test_a_schedule_comes_round_while_its_job_backs_off(jobs: Jobs) -> None:
    attempts: list[int] = []

    async def work(running: JobContext) -> None:
        attempts.append(running.attempt)
        raise RuntimeError("not today")

    task = jobs.task(work, backoff_seconds=(12 * 3600.0,) * 5)
    schedule = Schedule(task, "0 3 * * *")

    async def known() -> bool:
        async with jobs.database.read() as session:
            return bool(await session.scalar(text("SELECT count(*) FROM pgqueuer_schedules")))

    async with working(jobs.runner(schedules=(schedule,))):
        await until(known)
    for ticks in (1, 2, 3):
        async with jobs.database.write() as session:
            await session.execute(text("UPDATE pgqueuer_schedules SET next_run = now()"))

        async def ran(ticks: int = ticks) -> bool:
            return len(attempts) == ticks

        async with working(jobs.runner(schedules=(schedule,))):
            await until(ran)
    assert attempts == [1, 2, 3]


async def test_a_schedule_runs_once_however_many_work(jobs: Jobs) -> None:
    done: list[int] = []

    async def work(running: JobContext) -> None:
        done.append(running.id)

    task = jobs.task(work)
    schedule = Schedule(task, "0 3 * * *")
    async with (
        working(jobs.runner(schedules=(schedule,))),
        working(jobs.runner(schedules=(schedule,))),
    ):

        async def known() -> bool:
            async with jobs.database.read() as session:
                return bool(await session.scalar(text("SELECT count(*) FROM pgqueuer_schedules")))

        await until(known)
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


async def test_the_connection_of_the_queue_is_lost(jobs: Jobs) -> None:
    done: list[int] = []

    async def work(running: JobContext) -> None:
        done.append(running.data["number"])

    async def count(expected: int) -> bool:
        return len(done) == expected

    task = jobs.task(work)
    async with working(jobs.runner(task)):
        await jobs.ask(task, number=1)
        await until(lambda: count(1))
        async with jobs.database.read() as session:
            killed = await session.scalar(
                text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'quart-upsun jobs' AND datname = current_database()"
                )
            )
        assert killed == 1
        await jobs.ask(task, number=2)
        await until(lambda: count(2))
    assert done == [1, 2]


async def test_many_at_once(jobs: Jobs) -> None:
    """All of them wait at the same time."""
    waiting, everybody = 0, asyncio.Event()

    async def work(running: JobContext) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 300:
            everybody.set()
        await everybody.wait()

    task = jobs.task(work)
    async with jobs.database.write() as session:
        await enqueue_many(session, task, [{"number": number} for number in range(300)])
    await jobs.do(task)
    assert await jobs.rows() == []


async def test_a_read_only_database_is_logged_once(
    app: Quart,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Statements that only read go on succeeding, and another driver may take over."""
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
