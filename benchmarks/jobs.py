"""Check that background jobs survive killed workers, and measure concurrent jobs.

  python -m benchmarks.jobs [--jobs N] [--workers N] [--kills N] [--waiting N] [--seconds S]

Starts an embedded PostgreSQL in a temporary directory. The first part enqueues many short jobs.
Each inserts a row in the transaction that completes it, into a table that accepts duplicates.
Worker processes (`app.worker`) run the jobs; some are killed with SIGKILL, one after the other, and
each is replaced by a new one. In the second part, one worker runs many jobs that only sleep, all at
the same time.

Prints the results and, as the last line, JSON:

- jobs, kills: number of enqueued jobs, and of killed workers
- running_at_kills: jobs that were running in all workers at each kill
- done, missing, duplicates: jobs with a row, jobs without a row, and surplus rows
- jobs_per_second: throughput until the last job is done, including waits for missed heartbeats
- undisturbed_per_second: throughput from the first row to the first kill
- after_last_kill_s: from the last kill to the end
- waiting, waiting_s, waited_s: number of sleeping jobs, the duration of each, and the total time
- waiting_cpu_s: CPU time of the worker during the sleeping jobs
- start_s, idle_mb, idle_cpu_percent: start-up time, memory and CPU usage of an idle worker
- waiting_mb: peak memory of the worker with all sleeping jobs
- connections: maximum number of connections of one worker

Exit code 1 if a job does not take effect exactly once, or if the sleeping jobs together take much
longer than one of them.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from quart import Quart
from sqlalchemy import text

from app import create_app
from app.settings import Settings, load_settings
from benchmarks import harness
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.jobs.queue import JobContext, Task, enqueue_many
from quart_upsun.jobs.runner import HEARTBEAT_TIMEOUT, POLL_INTERVAL
from quart_upsun.server import worker

ROOT = Path(__file__).parent.parent
WORK = "--work"
BATCH_SIZE = 1000  # jobs enqueued in one transaction
IDLE_SECONDS = 20.0
TIMEOUT_SECONDS = 600.0
# Allowed for starting and completing all sleeping jobs, in addition to the sleep itself.
OVERHEAD_SECONDS = 5.0


async def short(running: JobContext) -> None:
    async with running.complete() as session:
        await leave_row(session, running)


async def waiting(running: JobContext) -> None:
    await asyncio.sleep(running.data["seconds"])
    async with running.complete() as session:
        await leave_row(session, running)


async def leave_row(session: Any, running: JobContext) -> None:
    statement = text("INSERT INTO effects (number, worker) VALUES (:number, :worker)")
    await session.execute(statement, {"number": running.data["number"], "worker": os.getpid()})


SHORT, WAITING = Task("benchmark short", short), Task("benchmark waiting", waiting)


def factory(settings: Settings) -> Quart:
    app = create_app(settings)
    app.extensions["quart_upsun"].jobs.tasks |= {task.name: task for task in (SHORT, WAITING)}
    return app


class Worker:
    """A worker process."""

    def __init__(self, url: str) -> None:
        self.spawned = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.jobs", WORK],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_URL": url,
                "SECRET_KEY": "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0",
                "LOG_LEVEL": "warning",
                "MAIL_URL": "console:",
            },
            stdout=sys.stderr,
        )
        self.inside = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def megabytes(self) -> float:
        return float(self.inside.memory_info().rss) / 1e6

    @property
    def cpu_seconds(self) -> float:
        times = self.inside.cpu_times()
        return float(times.user + times.system)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop it gracefully, as a deploy does."""
        self._process.terminate()
        self._process.wait(30)


class Watch:
    """Enqueues jobs, and observes their progress in the database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(parse_database_url(url), pool_size=2)

    async def prepare(self) -> None:
        async with self.database.write() as session:
            await session.execute(
                text("CREATE TABLE effects (number integer NOT NULL, worker integer NOT NULL)")
            )

    async def enqueue(self, task: Task, count: int, **data: Any) -> None:
        for first in range(0, count, BATCH_SIZE):
            numbers = range(first, min(first + BATCH_SIZE, count))
            async with self.database.write() as session:
                await enqueue_many(session, task, [{"number": n, **data} for n in numbers])

    async def scalar(self, query: str, **values: Any) -> int:
        async with self.database.read() as session:
            return int(await session.scalar(text(query), values) or 0)

    async def rows(self) -> int:
        return await self.scalar("SELECT count(*) FROM effects")

    async def running(self) -> int:
        return await self.scalar("SELECT count(*) FROM pgqueuer WHERE status = 'picked'")

    async def remaining(self) -> int:
        return await self.scalar("SELECT count(*) FROM pgqueuer WHERE status <> 'failed'")

    async def wait_until(self, condition: Callable[[], Awaitable[bool]], event: str) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not await condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"Timed out after {TIMEOUT_SECONDS:g} s waiting for {event}.")
            await asyncio.sleep(0.02)

    async def wait_for_rows(self, count: int) -> None:
        async def enough() -> bool:
            return await self.rows() >= count

        await self.wait_until(enough, f"row {count}")

    async def wait_for_empty_queue(self) -> None:
        async def empty() -> bool:
            return not await self.remaining()

        await self.wait_until(empty, "an empty queue")

    async def outcome(self, enqueued: int) -> dict[str, int]:
        """Compare the rows with the enqueued jobs, and delete them."""
        rows = await self.rows()
        done = await self.scalar("SELECT count(DISTINCT number) FROM effects")
        async with self.database.write() as session:
            await session.execute(text("TRUNCATE effects, pgqueuer_log"))
        return {"done": done, "missing": enqueued - done, "duplicates": rows - done}


@contextmanager
def killed_at_exit(workers: list[Worker]) -> Iterator[None]:
    try:
        yield
    finally:
        for each in workers:
            each.kill()


async def survive(watch: Watch, jobs: int, count: int, kills: int) -> dict[str, Any]:
    """Kill workers while they run jobs."""
    await watch.enqueue(SHORT, jobs)
    begun = time.monotonic()
    workers = [Worker(watch.url) for _ in range(count)]
    killed: list[Worker] = []
    with killed_at_exit(workers):
        await watch.wait_for_rows(1)
        first, rate = time.monotonic(), 0.0
        running: list[int] = []
        last = first
        for number in range(kills):
            # Spread the kills over the middle half of the jobs.
            await watch.wait_for_rows(int(jobs * (0.25 + 0.5 * number / max(1, kills - 1))))
            if not number:
                rate = await watch.rows() / (time.monotonic() - first)
            victim = workers.pop(0)
            victim.kill()
            last = time.monotonic()
            running.append(await watch.running())
            killed.append(victim)
            workers.append(Worker(watch.url))
        await watch.wait_for_empty_queue()
        end = time.monotonic()
        for each in workers:
            each.stop()
    return {
        "jobs": jobs,
        "kills": len(killed),
        "running_at_kills": running,
        **await watch.outcome(jobs),
        "jobs_per_second": round(jobs / (end - begun)),
        "undisturbed_per_second": round(rate),
        "after_last_kill_s": round(end - last, 1),
    }


@asynccontextmanager
async def one_worker(watch: Watch) -> AsyncIterator[tuple[Worker, float]]:
    """Run a worker; yield it, and the seconds from its start to the end of its first job."""
    await watch.enqueue(SHORT, 1)
    one = Worker(watch.url)
    with killed_at_exit([one]):
        await watch.wait_for_empty_queue()
        start = time.monotonic() - one.spawned
        await watch.outcome(1)
        yield one, start
        one.stop()


async def measure_waiting(watch: Watch, count: int, seconds: float) -> dict[str, Any]:
    """Measure an idle worker, and then the same worker with many sleeping jobs."""
    async with one_worker(watch) as (one, start):
        await asyncio.sleep(1)  # let start-up work finish
        used, begun = one.cpu_seconds, time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        idle = (one.cpu_seconds - used) / (time.monotonic() - begun)
        idle_mb, used = one.megabytes, one.cpu_seconds
        await watch.enqueue(WAITING, count, seconds=seconds)
        begun = time.monotonic()
        most = connections = 0.0

        async def empty() -> bool:
            nonlocal most, connections
            most = max(most, one.megabytes)
            connections = max(connections, len(one.inside.net_connections("tcp")))
            return not await watch.remaining()

        await watch.wait_until(empty, "the sleeping jobs")
        waited, used = time.monotonic() - begun, one.cpu_seconds - used
        failures = await watch.scalar(
            "SELECT count(*) FROM pgqueuer_log WHERE traceback IS NOT NULL"
        )
    outcome = await watch.outcome(count)
    return {
        "waiting": count,
        "waiting_s": seconds,
        "waited_s": round(waited, 2),
        "waiting_cpu_s": round(used, 2),
        "waiting_failed_attempts": failures,
        "waiting_missing": outcome["missing"],
        "waiting_duplicates": outcome["duplicates"],
        "start_s": round(start, 2),
        "idle_mb": round(idle_mb, 1),
        "idle_cpu_percent": round(100 * idle, 2),
        "waiting_mb": round(most, 1),
        "connections": int(connections),
    }


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each target that was missed."""
    checks = {
        "every job is done": not result["missing"] and not result["waiting_missing"],
        "no job takes effect twice": not result["duplicates"] and not result["waiting_duplicates"],
        "sleeping jobs run concurrently": result["waited_s"]
        <= result["waiting_s"] + OVERHEAD_SECONDS,
        "no attempt failed": not result["waiting_failed_attempts"],
    }
    return [target for target, met in checks.items() if not met]


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    watch = Watch(url)
    await watch.prepare()
    result = await survive(watch, options.jobs, options.workers, options.kills)
    print(
        f"{result['jobs']} jobs, {options.workers} workers, {result['kills']} killed:"
        f" {result['missing']} effects missing, {result['duplicates']} duplicated;"
        f" {result['jobs_per_second']} jobs/s in total, {result['undisturbed_per_second']} before"
        f" the first kill; finished {result['after_last_kill_s']} s after the last kill"
        f" (heartbeat timeout {HEARTBEAT_TIMEOUT.seconds} s, poll interval"
        f" {POLL_INTERVAL.seconds} s)"
    )
    result |= await measure_waiting(watch, options.waiting, options.seconds)
    await watch.database.close()
    print(
        f"{result['waiting']} jobs that sleep {result['waiting_s']:g} s, one worker: finished after"
        f" {result['waited_s']} s, {result['waiting_cpu_s']} s of CPU time,"
        f" {result['waiting_failed_attempts']} failed attempts;"
        f" {result['waiting_mb']} MB, {result['connections']} connections"
    )
    print(
        f"Idle worker: first job done {result['start_s']} s after start, {result['idle_mb']} MB,"
        f" {result['idle_cpu_percent']}% CPU"
    )
    return result


def main() -> int:
    options = harness.parser(
        "jobs",
        __doc__,
        jobs=(10_000, "number of short jobs"),
        workers=(3, "number of workers"),
        kills=(3, "number of workers to kill"),
        waiting=(1000, "number of sleeping jobs"),
        seconds=(2.0, "duration of a sleeping job"),
    ).parse_args()
    with harness.temporary_database("jobs") as (url, _):
        result = asyncio.run(measure(url, options))
    return harness.finish(result, missed_targets(result))


if __name__ == "__main__":
    sys.exit(worker.main(factory, load_settings) if WORK in sys.argv else main())
