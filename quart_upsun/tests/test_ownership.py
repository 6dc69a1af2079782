"""Jobs and schedules of a database that belongs to another environment."""

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
GIVE_AWAY = text("UPDATE database_owner SET environment = :name, type = 'production'")


class Work:
    """A task that says when it runs, in a database whose owner can change."""

    def __init__(self, app: Quart) -> None:
        self.app = app
        self.database: Database = app.extensions["quart_upsun"].database
        self.ran = asyncio.Event()
        self.task = Task("test", self.run)

    async def run(self, running: JobContext) -> None:
        self.ran.set()

    async def give_to(self, name: str) -> None:
        async with self.database.write() as session:
            await session.execute(GIVE_AWAY, {"name": name})

    async def ask(self) -> None:
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


async def refused(caplog: pytest.LogCaptureFixture, *, times: int = 1) -> list[str]:
    """Wait until the refusal is logged; return what it says."""
    async with asyncio.timeout(10):
        while True:
            found = [
                each.getMessage() for each in caplog.records if "jobs paused" in each.getMessage()
            ]
            if len(found) >= times:
                return found
            await asyncio.sleep(0.01)


async def test_jobs_of_another_environment_wait(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    await work.give_to(PRODUCTION)
    await work.ask()
    async with working(work.runner()):
        (said,) = await refused(caplog)
        assert f"belongs to the environment {PRODUCTION} (production)" in said
        assert f"DATABASE_ENVIRONMENT={PRODUCTION}" in said
        assert await work.states() == ["queued"]
        # The same process, once the database is its own.
        await work.give_to("tests")
        await asyncio.wait_for(work.ran.wait(), 10)


async def test_a_restore_under_a_running_worker_is_noticed(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(work.runner()):
        await work.ask()
        await asyncio.wait_for(work.ran.wait(), 10)
        work.ran.clear()
        async with work.database.write() as session:  # the owner and the job come together
            await session.execute(GIVE_AWAY, {"name": PRODUCTION})
            await enqueue(session, work.task)
        await refused(caplog)
        assert (await work.states())[-1] == "queued"  # the first may not be recorded as done yet
        assert not work.ran.is_set()


async def test_schedules_of_another_environment_wait(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    await work.give_to(PRODUCTION)
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
        await refused(caplog)
        assert await work.states() == []
        await work.give_to("tests")
        await asyncio.wait_for(work.ran.wait(), 10)


async def test_an_unowned_database_has_no_jobs_for_anybody(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    async with work.database.write() as session:
        await session.execute(text("DELETE FROM database_owner"))
    await work.ask()
    async with working(work.runner()):
        (said,) = await refused(caplog)
        assert "has no owner" in said
        assert await work.states() == ["queued"]


async def invoke(settings: Settings, *arguments: str, typed: str = "") -> tuple[int, str]:
    result = await asyncio.to_thread(
        CliRunner().invoke,
        database_group(settings.database_url, settings.identity),
        arguments,
        input=typed,
    )
    return result.exit_code, result.output


async def test_the_owner_is_shown(settings: Settings, work: Work) -> None:
    await work.give_to(PRODUCTION)
    code, output = await invoke(settings, "owner")
    assert code == 0
    assert f"Database:     {PRODUCTION} (production)" in output
    assert "This process: tests (local)" in output


async def test_a_restored_copy_is_claimed_without_its_jobs(settings: Settings, work: Work) -> None:
    await work.give_to(PRODUCTION)
    await work.ask()
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


async def test_without_a_database_or_a_schema_the_commands_say_so(
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
