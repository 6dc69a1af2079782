"""The worker: what it does with a signal, with a death, without a database, and beside others."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select, text

from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.jobs.models import Job
from quart_upsun.jobs.queue import Task, enqueue
from quart_upsun.testing.databases import create_database, drop_database
from quart_upsun.testing.servers import (
    EXIT_SECONDS,
    SECRET_KEY,
    Server,
    migrate,
    serving,
    spawned,
)
from quart_upsun.tests.process.jobs import BLOCK, HOLD, QUICK
from quart_upsun.tests.process.test_outage import cluster, make_read_only, make_writable

SAMPLE = "quart_upsun.tests.sample"
WORKER = ("quart_upsun.tests.process.jobs", "worker")
SERVER = ("quart_upsun.tests.process.jobs", "server")
EXIT = 12.0  # seconds from the signal; the platform kills after 15
SHORT = {"FINISH": "0.5"}
MORTAL = {"HEARTBEAT_TIMEOUT": "1"}


class Queue:
    """The queue, from the side of those who ask."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(parse_database_url(url), pool_size=2)

    async def ask(self, task: Task, *numbers: int) -> None:
        async with self.database.write() as session:
            for number in numbers:
                await enqueue(session, task, number=number)

    async def jobs(self) -> list[tuple[str, int]]:
        """Return the state of each job that was asked for, and how many attempts count."""
        # The application's own come when their time has come.
        mine = Job.entrypoint.in_([task.name for task in (HOLD, BLOCK, QUICK)])
        async with self.database.read() as session:
            query = select(Job.status, Job.attempts).where(mine).order_by(Job.id)
            rows = await session.execute(query)
            return [(status, attempts) for status, attempts in rows]

    async def effects(self) -> list[int]:
        async with self.database.read() as session:
            numbers = await session.scalars(text("SELECT number FROM effects ORDER BY number"))
            return [int(number) for number in numbers]

    async def is_done(self, server: Server, within: float = 15.0) -> None:
        """Wait until nothing is left to do."""
        await self.is_at([], server, within)

    async def is_at(
        self, jobs: list[tuple[str, int]], server: Server, within: float = 15.0
    ) -> None:
        """Wait until just these are left."""
        deadline = time.monotonic() + within
        while await self.jobs() != jobs:
            assert time.monotonic() < deadline, f"{await self.jobs()}\n{server.output}"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Queue]:
    queue = Queue(url)
    async with queue.database.write() as session:
        # Without a constraint, so that a row too many is not refused but seen.
        await session.execute(text("CREATE TABLE effects (number integer)"))
    try:
        yield queue
    finally:
        await queue.database.close()


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[Queue]:
    async with opened(database_url) as queue:
        yield queue


@dataclass(frozen=True)
class Gate:
    """What the jobs of a process wait at."""

    path: Path

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def other_gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "other")


@asynccontextmanager
async def working(url: str, gate: Gate, **variables: str) -> AsyncIterator[Server]:
    """Start a worker, and wait until it works."""
    async with spawned(1, *WORKER, DATABASE_URL=url, GATE=str(gate.path), **variables) as worker:
        await worker.says("worker ready")
        yield worker


@pytest.mark.parametrize(
    "command",
    [
        WORKER,
        SERVER,
        (
            "hypercorn",
            "--bind=127.0.0.1:0",
            f"--error-logfile={os.devnull}",
            f"{SAMPLE}:create_app()",
        ),
    ],
)
async def test_a_database_seen_through_a_tunnel_keeps_its_jobs(
    queue: Queue, command: tuple[str, ...]
) -> None:
    """Its confirmation mails, for instance, would be printed here and gone."""
    await queue.ask(QUICK, 1)
    laptop = {"DATABASE_ENVIRONMENT": "local-0badcafe", "PORT": "0", "SECRET_KEY": SECRET_KEY}
    async with spawned(1, *command, DATABASE_URL=queue.url, **laptop) as process:
        (event,) = await process.says("jobs paused")
        assert (event["owner"], event["environment"]) == ("tests", "local-0badcafe")
        assert await queue.jobs() == [("queued", 0)]
        async with queue.database.read() as session:
            scheduled = await session.scalar(text("SELECT count(*) FROM pgqueuer_schedules"))
        assert scheduled == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_worker_ends_at_once(queue: Queue, gate: Gate, number: int) -> None:
    async with working(queue.url, gate) as worker:
        await queue.ask(QUICK, 1)
        await queue.is_done(worker)
        await worker.stops(number)
        assert time.monotonic() - worker.stopped < 1
        assert [event["in_flight"] for event in worker.events("worker stopping")] == [0]
        assert len(worker.events("worker stopped")) == 1


async def test_a_signal_during_the_start(database_url: str, empty_database: str) -> None:
    """At any moment of it: while modules are imported, and at every line the worker logs."""

    async def check(worker: Server, number: int) -> None:
        worker.send(number)
        assert await worker.ended() in {0, -signal.SIGTERM}, worker.output
        assert "Traceback" not in worker.output

    async def stop_after(seconds: float) -> None:
        async with spawned(1, *WORKER, DATABASE_URL=database_url) as worker:
            await asyncio.sleep(seconds)
            await check(worker, signal.SIGTERM)

    async def stop_at(line: str, url: str, number: int) -> None:
        async with spawned(1, *WORKER, DATABASE_URL=url) as worker:
            await worker.says(line)
            await check(worker, number)

    await asyncio.gather(*(stop_after(seconds) for seconds in (0, 0.2, 0.5, 1)))
    await asyncio.gather(
        *(
            stop_at(line, url, number)
            for line, url in (
                ("worker ready", database_url),
                ("schema ready", database_url),
                ("schema behind", empty_database),
            )
            for number in (signal.SIGTERM, signal.SIGINT)
        )
    )


async def test_what_ends_in_time_is_finished(queue: Queue, gate: Gate) -> None:
    async with working(queue.url, gate) as worker:
        await queue.ask(HOLD, 1, 2, 3)
        await worker.says("begun", times=3)
        worker.send()
        await worker.says("worker stopping")
        await queue.ask(HOLD, 4)  # too late
        gate.open()
        assert await worker.ended() == 0, worker.output
        assert time.monotonic() - worker.stopped < 4
        assert worker.problems() == []
    assert await queue.effects() == [1, 2, 3]
    assert await queue.jobs() == [("queued", 0)]


async def test_what_does_not_end_is_put_back_and_done_by_another_worker(
    queue: Queue, gate: Gate
) -> None:
    async with working(queue.url, gate, **SHORT) as worker:
        await queue.ask(HOLD, *range(20))
        await worker.says("begun", times=20)
        worker.send()
        await worker.says("worker stopping")
        # More of them change nothing.
        worker.process.send_signal(signal.SIGINT)
        worker.process.send_signal(signal.SIGTERM)
        await worker.says("jobs requeued")
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0, worker.output
        assert time.monotonic() - worker.stopped < 4
        assert worker.problems() == []
    assert await queue.jobs() == [("queued", 0)] * 20
    gate.open()
    async with working(queue.url, gate) as worker:
        await queue.is_done(worker)
    assert await queue.effects() == list(range(20))


async def test_who_waits_hears_of_what_is_put_back(
    queue: Queue, gate: Gate, other_gate: Gate
) -> None:
    """At once, and not only when it looks again."""
    other_gate.open()
    async with (
        working(queue.url, gate, **SHORT) as leaving,
        spawned(1, *WORKER, DATABASE_URL=queue.url, GATE=str(other_gate.path)) as staying,
    ):
        await queue.ask(HOLD, 1)
        await leaving.says("begun")
        await staying.says("worker ready")
        await staying.says("schema ready")
        await leaving.stops()
        left = time.monotonic()
        await queue.is_done(staying)
        assert time.monotonic() - left < 2
    assert await queue.effects() == [1]


async def test_with_the_times_of_production(
    queue: Queue, gate: Gate, server_url: str, migrated_template: str
) -> None:
    """A worker, and beside it server processes that do the jobs themselves."""

    async def put_back(server: Server, queue: Queue, within: float) -> None:
        await queue.ask(HOLD, 1)
        await server.says("begun")
        await queue.ask(QUICK, 2)
        await has_effects(queue, [2])
        server.send()
        assert await server.ended(within) == 0, server.output
        assert time.monotonic() - server.stopped > 4  # it was given time to end
        assert server.problems() == [], server.output
        assert await queue.jobs() == [("queued", 0)]

    url = await create_database(server_url, migrated_template)
    variables = {"GATE": str(gate.path), "RUN_JOBS": "true"}
    async with (
        opened(url) as servers_queue,
        working(queue.url, gate) as worker,
        serving(2, *SERVER, DATABASE_URL=url, **variables) as server,
    ):
        await asyncio.gather(
            put_back(worker, queue, EXIT), put_back(server, servers_queue, EXIT_SECONDS)
        )
    await drop_database(server_url, url)


async def has_effects(queue: Queue, numbers: list[int]) -> None:
    async with asyncio.timeout(15):
        while await queue.effects() != numbers:  # noqa: ASYNC110 what it asks is in the database
            await asyncio.sleep(0.02)


@asynccontextmanager
async def opened_again(url: str) -> AsyncIterator[Queue]:
    queue = Queue(url)
    try:
        yield queue
    finally:
        await queue.database.close()


async def test_what_a_killed_worker_was_doing_is_done_by_another(queue: Queue, gate: Gate) -> None:
    async with (
        working(queue.url, gate, **MORTAL) as killed,
        spawned(1, *WORKER, DATABASE_URL=queue.url, GATE=str(gate.path), **MORTAL) as other,
    ):
        await queue.ask(HOLD, *range(10))
        await killed.says("begun")
        await other.says("worker ready")
        # So that it has some of them to itself.
        await queue.ask(HOLD, *range(10, 20))
        killed.process.kill()
        gate.open()
        await queue.is_done(other)
        assert other.problems() == []
        await other.stops()
    assert await queue.effects() == list(range(20))


async def test_a_job_that_somebody_else_has_begun_again_stays_theirs(
    queue: Queue, gate: Gate, other_gate: Gate
) -> None:
    """One worker is stuck for so long that the other takes over; then both want to end the job."""
    async with working(queue.url, gate, BLOCK="yes", **MORTAL) as stuck:
        await queue.ask(BLOCK, 1)
        await stuck.says("begun")
        async with working(queue.url, other_gate, **MORTAL) as other:
            await other.says("begun")
            gate.open()
            await stuck.says("job taken over")
            await stuck.stops()  # and with it all that it has to say about its jobs
            assert await queue.effects() == []
            assert await queue.jobs() == [("picked", 0)]
            other_gate.open()
            await queue.is_done(other)
            await other.stops()
    assert await queue.effects() == [1]


async def test_a_worker_that_is_stuck_ends_all_the_same(queue: Queue, gate: Gate) -> None:
    async with working(queue.url, gate, BLOCK="yes", EXIT="1") as worker:
        await queue.ask(BLOCK, 1)
        await worker.says("begun")
        worker.send()
        assert await worker.ended(5) == 0
        assert len(worker.events("shutdown timed out")) == 1
        assert "Traceback" not in worker.output
    assert await queue.jobs() == [("picked", 0)]


async def test_a_worker_waits_for_the_migrations(empty_database: str, gate: Gate) -> None:
    gate.open()
    async with working(empty_database, gate) as worker:
        await worker.says("schema behind")
        # For longer than it waits before it asks again.
        await asyncio.sleep(1.5)
        assert worker.process.poll() is None
        await migrate(empty_database)
        async with opened(empty_database) as queue:
            await queue.ask(HOLD, 1)
            await queue.is_done(worker)
            assert await queue.effects() == [1]
        await worker.stops()
        # Once for each revision that it has met on the way.
        met = [event["revision"] for event in worker.events("schema behind")]
        assert met[0] is None
        assert len(set(met)) == len(met)
        assert len(worker.events("schema ready")) == 1


async def test_the_database_crashes_and_comes_back(tmp_path: Path, gate: Gate) -> None:
    """With a job under way, that ends when it is away, and one that is asked for later."""
    with cluster(tmp_path / "postgres") as url:
        await migrate(url)
        async with opened(url) as queue:
            server = spawned(1, *WORKER, DATABASE_URL=url, GATE=str(gate.path), **MORTAL)
            worker = await server.__aenter__()
            await queue.ask(HOLD, 1)
            await worker.says("begun")
    try:
        gate.open()
        await worker.says("job attempt failed")
        with cluster(tmp_path / "postgres") as again:
            assert again == url, "something else has taken the port"
            async with opened_again(url) as queue:
                await queue.ask(QUICK, 2)
                await has_effects(queue, [2])
                await queue.is_at([("queued", 1)], worker)  # for its next attempt, in 30 seconds
                async with queue.database.write() as session:
                    await session.execute(text("UPDATE pgqueuer SET execute_after = now()"))
                await queue.is_done(worker)
                assert await queue.effects() == [1, 2]
            await worker.stops()
    finally:
        await server.__aexit__(None, None, None)


async def test_the_database_is_read_only_for_a_while(tmp_path: Path, gate: Gate) -> None:
    """Jobs wait, and the log says so once; one under way is tried again."""
    with cluster(tmp_path / "postgres") as url:
        await migrate(url)
        async with opened(url) as queue, working(url, gate, **MORTAL) as worker:
            await queue.ask(HOLD, 1)
            await worker.says("begun")
            await queue.ask(HOLD, 2)
            await worker.says("begun", times=2)
            await make_read_only(url)
            gate.open()
            await worker.says("job attempt failed", times=2)
            # Several heartbeats, each of which is refused.
            await asyncio.sleep(3)
            lost = worker.events("job queue connection lost")
            reasons = [event["reason"] for event in lost]
            assert "ReadOnlySQLTransactionError" in reasons
            assert len(set(reasons)) == len(reasons), worker.output
            await make_writable(url)
            await queue.database.close()  # its connections have ended
            await queue.ask(QUICK, 3)
            await has_effects(queue, [3])
            await queue.is_at([("queued", 1), ("queued", 1)], worker)
            async with queue.database.write() as session:
                await session.execute(text("UPDATE pgqueuer SET execute_after = now()"))
            await queue.is_done(worker)
            assert await queue.effects() == [1, 2, 3]
            await worker.stops()


async def test_a_start_that_fails_says_why() -> None:
    async with spawned(1, *WORKER, DATABASE_URL="") as worker:
        assert await worker.ended(30) == 1
        (line,) = worker.lines
        assert line.startswith("DATABASE_URL is not set.")


async def test_nobody_reads_the_log_any_more(queue: Queue, gate: Gate) -> None:
    gate.open()
    reading, writing = os.pipe()
    worker = subprocess.Popen(  # noqa: ASYNC220 whose output is a pipe of ours
        [sys.executable, "-m", *WORKER],
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": queue.url,
            "DATABASE_ENVIRONMENT": os.environ["DATABASE_ENVIRONMENT"],
            "SECRET_KEY": SECRET_KEY,
            "GATE": str(gate.path),
        },
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    try:
        said = b""
        while b'"worker ready"' not in said:
            said += await asyncio.to_thread(os.read, reading, 65536)
        os.close(reading)
        await queue.ask(HOLD, 1)
        await has_effects(queue, [1])
        worker.send_signal(signal.SIGTERM)
        # Python's own complaint about its output, if not success.
        assert await asyncio.to_thread(worker.wait, 10) in {0, 120}
    finally:
        with suppress(ProcessLookupError):
            worker.kill()
        worker.wait()
