"""The owner of a database: jobs of other environments, and `quart database`."""

import asyncio

import pytest
from click.testing import CliRunner
from quart import Quart
from sqlalchemy import select, text

from quart_upsun.database import Database
from quart_upsun.database.commands import database_group
from quart_upsun.jobs.models import Job
from quart_upsun.jobs.queue import JobContext, Schedule, Task, enqueue
from quart_upsun.jobs.runner import Runner
from quart_upsun.testing import runner_of
from quart_upsun.testing.runners import working
from quart_upsun.testing.statements import connected
from quart_upsun.tests.sample.settings import Settings

PRODUCTION = "main-bvxea6i"
SET_OWNER = text("UPDATE database_owner SET environment = :name, type = 'production'")


class Work:
    """A task that records that it ran, in a database whose owner the test changes."""

    def __init__(self, app: Quart) -> None:
        self.app = app
        self.database: Database = app.extensions["quart_upsun"].database
        self.ran = asyncio.Event()
        self.task = Task("test", self.run)

    async def run(self, running: JobContext) -> None:
        self.ran.set()

    async def set_owner(self, name: str) -> None:
        async with self.database.write() as session:
            await session.execute(SET_OWNER, {"name": name})

    async def enqueue(self) -> None:
        async with self.database.write() as session:
            await enqueue(session, self.task)

    async def states(self) -> list[str]:
        async with self.database.read() as session:
            return list(await session.scalars(select(Job.status)))

    def runner(self, *schedules: Schedule) -> Runner:
        return runner_of(self.app, self.task, *schedules)


@pytest.fixture
def work(app: Quart) -> Work:
    return Work(app)


async def paused(caplog: pytest.LogCaptureFixture, *, times: int = 1) -> list[str]:
    """Wait until `jobs paused` is logged; return the log lines."""
    async with asyncio.timeout(30):
        while True:
            found = [
                each.getMessage() for each in caplog.records if "jobs paused" in each.getMessage()
            ]
            if len(found) >= times:
                return found
            await asyncio.sleep(0.01)


async def test_jobs_of_another_environment_do_not_run(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    await work.set_owner(PRODUCTION)
    await work.enqueue()
    async with working(work.runner()):
        (line,) = await paused(caplog)
        assert f"belongs to the environment {PRODUCTION} (production)" in line
        assert f"DATABASE_ENVIRONMENT={PRODUCTION}" in line
        assert await work.states() == ["queued"]
        # The same process runs the job once it is the owner.
        await work.set_owner("tests")
        await asyncio.wait_for(work.ran.wait(), 30)


async def test_a_running_worker_notices_a_restore(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(work.runner()):
        await work.enqueue()
        await asyncio.wait_for(work.ran.wait(), 30)
        work.ran.clear()
        async with work.database.write() as session:  # a restore replaces both
            await session.execute(SET_OWNER, {"name": PRODUCTION})
            await enqueue(session, work.task)
        await paused(caplog)
        assert (await work.states())[-1] == "queued"  # the first may not be recorded as done yet
        assert not work.ran.is_set()


async def test_schedules_of_another_environment_do_not_run(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    await work.set_owner(PRODUCTION)
    async with working(work.runner(Schedule(work.task, "* * * * *"))):
        async with work.database.write() as session:
            await session.execute(
                text(
                    "INSERT INTO pgqueuer_schedules (expression, entrypoint, next_run)"
                    " VALUES ('* * * * *', 'test', now() - interval '1 hour')"
                    " ON CONFLICT (expression, entrypoint)"
                    " DO UPDATE SET next_run = excluded.next_run"
                )
            )
        await paused(caplog)
        assert await work.states() == []
        await work.set_owner("tests")
        await asyncio.wait_for(work.ran.wait(), 30)


async def test_jobs_of_a_database_without_owner_do_not_run(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    async with work.database.write() as session:
        await session.execute(text("DELETE FROM database_owner"))
    await work.enqueue()
    async with working(work.runner()):
        (line,) = await paused(caplog)
        assert "has no owner" in line
        assert await work.states() == ["queued"]


async def invoke(settings: Settings, *arguments: str, typed: str = "") -> tuple[int, str]:
    result = await asyncio.to_thread(
        CliRunner().invoke,
        database_group(settings.database_url, settings.identity),
        arguments,
        input=typed,
    )
    return result.exit_code, result.output


async def test_owner_shows_the_database_and_this_process(settings: Settings, work: Work) -> None:
    await work.set_owner(PRODUCTION)
    code, output = await invoke(settings, "owner")
    assert code == 0
    assert f"Database:     {PRODUCTION} (production)" in output
    assert "This process: tests (local)" in output


async def test_claim_takes_over_a_copy_and_deletes_its_jobs(settings: Settings, work: Work) -> None:
    await work.set_owner(PRODUCTION)
    await work.enqueue()
    code, _ = await invoke(settings, "claim", PRODUCTION, typed="n\n")
    assert code == 1
    assert await work.states() == ["queued"]
    code, output = await invoke(settings, "claim", "somebody-else", "--yes")
    assert code == 1
    assert f"belongs to the environment {PRODUCTION}" in output
    assert await work.states() == ["queued"]
    code, output = await invoke(settings, "claim", PRODUCTION, "--yes")
    assert code == 0, output
    assert "Jobs deleted: 1." in output
    assert await work.states() == []
    assert "tests (local)" in (await invoke(settings, "owner"))[1]


async def test_commands_report_a_missing_schema_or_database(
    settings: Settings, empty_database: str
) -> None:
    async with connected(empty_database) as connection:
        name = await connection.fetchval("SELECT current_database()")
    empty = settings.model_copy(update={"database_url": settings.database_url.set(database=name)})
    code, output = await invoke(empty, "owner")
    assert (code, "no owner" in output) == (0, True)
    code, output = await invoke(empty, "claim", PRODUCTION, "--yes")
    assert code == 1
    assert "alembic upgrade head" in output
    gone = settings.model_copy(update={"database_url": settings.database_url.set(port=9)})
    code, output = await invoke(gone, "owner")
    assert code == 1
    assert "Cannot connect to the database" in output
