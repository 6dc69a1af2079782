"""The worker: shutdown, crashes, database outages and several workers."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select, text

from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.jobs import runner
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
from quart_upsun.tests.process.test_outage import cluster, frozen, make_read_only, make_writable

SAMPLE = "quart_upsun.tests.sample"
WORKER = ("quart_upsun.tests.process.jobs", "worker")
SERVER = ("quart_upsun.tests.process.jobs", "server")
EXIT = 12.0  # seconds from the signal; the platform kills after 15
SHORT_SHUTDOWN = {"FINISH": "0.5"}
LONG_SHUTDOWN = {"FINISH": "600"}
SHORT_HEARTBEAT = {"HEARTBEAT_TIMEOUT": "1"}
NO_POLLING = {"POLL": "600"}


class Queue:
    """Enqueues jobs, and reads the state of the queue."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(parse_database_url(url), pool_size=2)

    async def enqueue(self, task: Task, *numbers: int) -> None:
        async with self.database.write() as session:
            for number in numbers:
                await enqueue(session, task, number=number)

    async def jobs(self) -> list[tuple[str, int]]:
        """Return the status and the attempts of each job of this test."""
        # Without those of the application's own schedules.
        is_of_test = Job.entrypoint.in_([task.name for task in (HOLD, BLOCK, QUICK)])
        async with self.database.read() as session:
            query = select(Job.status, Job.attempts).where(is_of_test).order_by(Job.id)
            rows = await session.execute(query)
            return [(status, attempts) for status, attempts in rows]

    async def effects(self) -> list[int]:
        async with self.database.read() as session:
            numbers = await session.scalars(text("SELECT number FROM effects ORDER BY number"))
            return [int(number) for number in numbers]

    async def is_done(self, server: Server, within: float = 15.0) -> None:
        """Wait until no job is left."""
        await self.is_at([], server, within)

    async def is_at(
        self, jobs: list[tuple[str, int]], server: Server, within: float = 15.0
    ) -> None:
        """Wait until exactly these jobs are left."""
        deadline = time.monotonic() + within
        while await self.jobs() != jobs:
            assert time.monotonic() < deadline, f"{await self.jobs()}\n{server.output}"
            await asyncio.sleep(0.02)

    async def is_done_with_retries(self, server: Server, within: float = 15.0) -> None:
        """Wait until no job is left; retries are due at once instead of after their delay."""
        deadline = time.monotonic() + within
        while await self.jobs():
            assert time.monotonic() < deadline, f"{await self.jobs()}\n{server.output}"
            async with self.database.write() as session:
                await session.execute(
                    text("UPDATE pgqueuer SET execute_after = now() WHERE execute_after > now()")
                )
            await asyncio.sleep(0.02)

    async def has_effect(self, number: int, output: Callable[[], str]) -> None:
        """Wait for the effect of a job. If it does not happen, show the output of its worker."""
        deadline = time.monotonic() + 15
        while number not in await self.effects():
            assert time.monotonic() < deadline, f"{await self.jobs()}\n{output()}"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Queue]:
    queue = Queue(url)
    async with queue.database.write() as session:
        # Without a unique constraint, so that duplicate effects are visible.
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
    """The file that the jobs of a process wait for."""

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
    """Start a worker, and wait until it is ready."""
    async with spawned(1, *WORKER, DATABASE_URL=url, GATE=str(gate.path), **variables) as worker:
        await worker.wait_for_event("worker ready")
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
async def test_jobs_of_another_environment_are_not_run(
    queue: Queue, command: tuple[str, ...]
) -> None:
    """Otherwise its mail, for instance, would be printed on the laptop and lost."""
    await queue.enqueue(QUICK, 1)
    laptop = {"DATABASE_ENVIRONMENT": "local-0badcafe", "PORT": "0", "SECRET_KEY": SECRET_KEY}
    async with spawned(1, *command, DATABASE_URL=queue.url, **laptop) as process:
        (event,) = await process.wait_for_event("jobs paused")
        assert (event["owner"], event["environment"]) == ("tests", "local-0badcafe")
        assert await queue.jobs() == [("queued", 0)]
        async with queue.database.read() as session:
            scheduled = await session.scalar(text("SELECT count(*) FROM pgqueuer_schedules"))
        assert scheduled == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_worker_exits_at_once(queue: Queue, gate: Gate, number: int) -> None:
    async with working(queue.url, gate) as worker:
        await queue.enqueue(QUICK, 1)
        await queue.is_done(worker)
        await worker.stop_cleanly(number)
        # It neither waits for the next poll nor for the time that jobs have to finish.
        assert time.monotonic() - worker.stopped < runner.POLL_INTERVAL.total_seconds()
        assert [event["in_flight"] for event in worker.events("worker stopping")] == [0]
        assert len(worker.events("worker stopped")) == 1


async def test_a_signal_during_startup_exits(database_url: str, empty_database: str) -> None:
    """At any time: while modules are imported, and at each line that the worker logs."""

    async def check(worker: Server, number: int) -> None:
        worker.send(number)
        assert await worker.wait_for_exit() in {0, -signal.SIGTERM}, worker.output
        assert "Traceback" not in worker.output

    async def stop_after(seconds: float) -> None:
        async with spawned(1, *WORKER, DATABASE_URL=database_url) as worker:
            await asyncio.sleep(seconds)
            await check(worker, signal.SIGTERM)

    async def stop_at(line: str, url: str, number: int) -> None:
        async with spawned(1, *WORKER, DATABASE_URL=url) as worker:
            await worker.wait_for_event(line)
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


async def test_shutdown_finishes_running_jobs(queue: Queue, gate: Gate) -> None:
    async with working(queue.url, gate, **LONG_SHUTDOWN) as worker:
        await queue.enqueue(HOLD, 1, 2, 3)
        await worker.wait_for_event("started", times=3)
        worker.send()
        await worker.wait_for_event("worker stopping")
        await queue.enqueue(HOLD, 4)  # must not start
        gate.open()
        assert await worker.wait_for_exit() == 0, worker.output
        assert worker.problems() == []
    assert await queue.effects() == [1, 2, 3]
    assert await queue.jobs() == [("queued", 0)]


async def test_shutdown_requeues_jobs_that_take_too_long(queue: Queue, gate: Gate) -> None:
    async with working(queue.url, gate, **SHORT_SHUTDOWN) as worker:
        await queue.enqueue(HOLD, *range(20))
        await worker.wait_for_event("started", times=20)
        worker.send()
        await worker.wait_for_event("worker stopping")
        # Further signals have no effect.
        worker.process.send_signal(signal.SIGINT)
        worker.process.send_signal(signal.SIGTERM)
        await worker.wait_for_event("jobs requeued")
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.wait_for_exit() == 0, worker.output
        assert worker.problems() == []
    assert await queue.jobs() == [("queued", 0)] * 20
    gate.open()
    async with working(queue.url, gate) as worker:
        await queue.is_done(worker)
    assert await queue.effects() == list(range(20))


async def test_other_workers_are_notified_of_requeued_jobs(
    queue: Queue, gate: Gate, other_gate: Gate
) -> None:
    """By a notification, not only by polling."""
    other_gate.open()
    async with working(queue.url, gate, **SHORT_SHUTDOWN) as stopping:
        await queue.enqueue(HOLD, 1)
        await stopping.wait_for_event("started")
        # The second worker gets this job, and then waits for a notification.
        stopping.process.send_signal(signal.SIGSTOP)
        async with working(queue.url, other_gate, **NO_POLLING) as remaining:
            await queue.enqueue(QUICK, 2)
            await queue.has_effect(2, lambda: remaining.output)
            stopping.process.send_signal(signal.SIGCONT)
            await stopping.stop_cleanly()
            await queue.is_done(remaining)
    assert await queue.effects() == [1, 2]


async def test_shutdown_with_the_default_timeouts(
    queue: Queue, gate: Gate, server_url: str, migrated_template: str
) -> None:
    """For a worker, and for server processes that run jobs."""

    async def requeues_jobs(server: Server, queue: Queue, within: float) -> None:
        await queue.enqueue(HOLD, 1)
        await server.wait_for_event("started")
        await queue.enqueue(QUICK, 2)
        await queue.has_effect(2, lambda: server.output)
        server.send()
        assert await server.wait_for_exit(within) == 0, server.output
        assert time.monotonic() - server.stopped > 4  # it waited for running jobs
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
            requeues_jobs(worker, queue, EXIT), requeues_jobs(server, servers_queue, EXIT_SECONDS)
        )
    await drop_database(server_url, url)


@asynccontextmanager
async def reopened(url: str) -> AsyncIterator[Queue]:
    queue = Queue(url)
    try:
        yield queue
    finally:
        await queue.database.close()


async def test_jobs_of_a_killed_worker_are_restarted(queue: Queue, gate: Gate) -> None:
    async with (
        working(queue.url, gate, **SHORT_HEARTBEAT) as killed,
        spawned(
            1, *WORKER, DATABASE_URL=queue.url, GATE=str(gate.path), **SHORT_HEARTBEAT
        ) as other,
    ):
        await queue.enqueue(HOLD, *range(10))
        await killed.wait_for_event("started")
        await other.wait_for_event("worker ready")
        # So that the other worker has claimed some of them.
        await queue.enqueue(HOLD, *range(10, 20))
        killed.process.kill()
        gate.open()
        await queue.is_done(other)
        assert other.problems() == []
        await other.stop_cleanly()
    assert await queue.effects() == list(range(20))


async def test_a_blocked_worker_does_not_finish_a_job_that_was_taken_over(
    queue: Queue, gate: Gate, other_gate: Gate
) -> None:
    """A blocked worker misses its heartbeats, another one takes over, and both finish the job."""
    # The blocked worker must not take the job back, so only the other one is impatient.
    async with working(queue.url, gate, BLOCK="yes") as blocked:
        await queue.enqueue(BLOCK, 1)
        await blocked.wait_for_event("started")
        async with working(queue.url, other_gate, **SHORT_HEARTBEAT) as other:
            await other.wait_for_event("started")
            gate.open()
            await blocked.wait_for_event("job taken over")
            await blocked.stop_cleanly()  # after it has recorded the end of its jobs
            assert await queue.effects() == []
            assert await queue.jobs() == [("picked", 0)]
            other_gate.open()
            await queue.is_done(other)
            await other.stop_cleanly()
    assert await queue.effects() == [1]


async def test_a_blocked_worker_exits_after_the_time_limit(queue: Queue, gate: Gate) -> None:
    async with working(queue.url, gate, BLOCK="yes", EXIT="1") as worker:
        await queue.enqueue(BLOCK, 1)
        await worker.wait_for_event("started")
        worker.send()
        assert await worker.wait_for_exit() == 0, worker.output
        assert len(worker.events("shutdown timed out")) == 1
        assert "Traceback" not in worker.output
    assert await queue.jobs() == [("picked", 0)]


async def test_a_worker_stops_in_time_while_the_database_hangs(tmp_path: Path, gate: Gate) -> None:
    with cluster(tmp_path / "postgres") as url:
        await migrate(url)
        async with opened(url) as queue, working(url, gate) as worker:
            await queue.enqueue(QUICK, 1)
            await queue.is_done(worker)  # its connections are open
            with frozen(tmp_path / "postgres"):
                worker.send()
                assert await worker.wait_for_exit() == 0, worker.output
            assert worker.events("worker stopped"), worker.output
            # PgQueuer reports that it cannot record the end of a job, such as a schedule's.
            problems = [line for line in worker.problems() if "Flush failed" not in line]
            assert problems == [], worker.output


async def test_a_worker_waits_for_migrations(empty_database: str, gate: Gate) -> None:
    gate.open()
    async with working(empty_database, gate) as worker:
        await worker.wait_for_event("schema behind")
        # Longer than the interval between its attempts.
        await asyncio.sleep(1.5)
        assert worker.process.poll() is None
        await migrate(empty_database)
        async with opened(empty_database) as queue:
            await queue.enqueue(HOLD, 1)
            await queue.is_done(worker)
            assert await queue.effects() == [1]
        await worker.stop_cleanly()
        # One line per revision on the way.
        revisions = [event["revision"] for event in worker.events("schema behind")]
        assert revisions[0] is None
        assert len(set(revisions)) == len(revisions)
        assert len(worker.events("schema ready")) == 1


async def test_a_worker_survives_a_database_crash(tmp_path: Path, gate: Gate) -> None:
    """A job ends during the outage, and another is enqueued after it."""
    with cluster(tmp_path / "postgres") as url:
        await migrate(url)
        async with opened(url) as queue:
            server = spawned(1, *WORKER, DATABASE_URL=url, GATE=str(gate.path), **SHORT_HEARTBEAT)
            worker = await server.__aenter__()
            await queue.enqueue(HOLD, 1)
            await worker.wait_for_event("started")
    try:
        gate.open()
        await worker.wait_for_event("job attempt failed")
        with cluster(tmp_path / "postgres") as again:
            assert again == url, "another program uses the port"
            async with reopened(url) as queue:
                await queue.enqueue(QUICK, 2)
                await queue.has_effect(2, lambda: worker.output)
                # The first job may already be done: its missed heartbeat can be noticed before the
                # retry is recorded.
                await queue.is_done_with_retries(worker)
                assert await queue.effects() == [1, 2]
            await worker.stop_cleanly()
    finally:
        await server.__aexit__(None, None, None)


async def test_a_worker_survives_a_read_only_database(tmp_path: Path, gate: Gate) -> None:
    """Jobs wait, running ones are retried, and the outage is logged once."""
    with cluster(tmp_path / "postgres") as url:
        await migrate(url)
        async with opened(url) as queue, working(url, gate, **SHORT_HEARTBEAT) as worker:
            await queue.enqueue(HOLD, 1)
            await worker.wait_for_event("started")
            await queue.enqueue(HOLD, 2)
            await worker.wait_for_event("started", times=2)
            await make_read_only(url)
            gate.open()
            await worker.wait_for_event("job attempt failed", times=2)
            # Several heartbeats fail meanwhile.
            await asyncio.sleep(3)
            await make_writable(url)
            await queue.database.close()  # the failover has closed its connections
            await queue.enqueue(QUICK, 3)
            await queue.has_effect(3, lambda: worker.output)
            # The others may already be done: their missed heartbeats can be noticed before the
            # retries are recorded.
            await queue.is_done_with_retries(worker)
            assert await queue.effects() == [1, 2, 3]
            await worker.stop_cleanly()
            lost = worker.events("job queue connection lost")
            reasons = [event["reason"] for event in lost]
            assert "ReadOnlySQLTransactionError" in reasons, worker.output
            assert len(set(reasons)) == len(reasons), worker.output


async def test_a_failed_start_exits_with_a_message() -> None:
    async with spawned(1, *WORKER, DATABASE_URL="") as worker:
        assert await worker.wait_for_exit(30) == 1
        (line,) = worker.lines
        assert line.startswith("DATABASE_URL is not set.")


async def test_a_worker_survives_a_closed_stdout(queue: Queue, gate: Gate) -> None:
    gate.open()
    reading, writing = os.pipe()
    worker = subprocess.Popen(  # noqa: ASYNC220 its output is a pipe of this test
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
        output = b""
        while b'"worker ready"' not in output:
            output += await asyncio.to_thread(os.read, reading, 65536)
        os.close(reading)
        await queue.enqueue(HOLD, 1)
        await queue.has_effect(1, lambda: output.decode())
        worker.send_signal(signal.SIGTERM)
        # 120: Python failed to flush stdout.
        assert await asyncio.to_thread(worker.wait, 10) in {0, 120}
    finally:
        with suppress(ProcessLookupError):
            worker.kill()
        worker.wait()
