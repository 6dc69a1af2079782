"""Whether jobs survive the death of their workers, and how many can wait at once.

  python -m benchmarks.jobs [--jobs N] [--workers N] [--kills N] [--waiting N] [--seconds S]

Starts the embedded PostgreSQL in a directory that is removed at the end. The first part asks for
many short jobs, each of which leaves a row in the transaction that ends it, in a table that would
take it twice. Workers, `app.worker` in processes of their own, do them; in the middle they are
killed without warning one after the other, and each is replaced by a new one. The second part lets
one worker do jobs that only wait, all at the same time.

Prints a line for people for each result, and at the end one line of JSON:

- jobs, kills: what was asked for, and how many workers were killed
- under_way_at_kills: jobs that all workers together had begun then
- done, missing, doubles: rows of different jobs; jobs without a row; rows too many
- jobs_per_second: until the last job was done, the time without heartbeats among it
- undisturbed_per_second: of all workers together, from the first row to the first kill
- after_last_kill_s: from the last kill to the end
- waiting, waiting_s, waited_s: jobs that wait, how long each, and from the commit to the end of all
- waiting_cpu_s: seconds of a processor that the worker used meanwhile
- start_s, idle_mb, idle_cpu_percent: of one worker that has nothing to do
- waiting_mb: of one that does all these at once
- connections: the most that one worker had

Exit code 1 if a job has no effect or more than one, or waiting took much longer than one job.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from quart import Quart
from sqlalchemy import text

from app import create_app
from app.settings import Settings, load_settings
from embedded_postgres import create_database, postgres
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.jobs.queue import JobContext, Task, enqueue_many
from quart_upsun.jobs.runner import HEARTBEAT_TIMEOUT, POLL_INTERVAL
from quart_upsun.server import worker

ROOT = Path(__file__).parent.parent
WORK = "--work"
CHUNK = 1000  # jobs that are asked for in one transaction
IDLE_SECONDS = 20.0
LIMIT = 600.0
# What a burst may cost beside the waiting itself: to begin, to end, to note it, a thousand times.
OVERHEAD = 5.0


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
    """A process that does jobs."""

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
        """Let it end as a deploy does."""
        self._process.terminate()
        self._process.wait(30)


class Watch:
    """What can be seen in the database while workers are busy with it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(parse_database_url(url), pool_size=2)

    async def prepare(self) -> None:
        async with self.database.write() as session:
            await session.execute(
                text("CREATE TABLE effects (number integer NOT NULL, worker integer NOT NULL)")
            )

    async def ask(self, task: Task, count: int, **data: Any) -> None:
        for first in range(0, count, CHUNK):
            numbers = range(first, min(first + CHUNK, count))
            async with self.database.write() as session:
                await enqueue_many(session, task, [{"number": n, **data} for n in numbers])

    async def scalar(self, query: str, **values: Any) -> int:
        async with self.database.read() as session:
            return int(await session.scalar(text(query), values) or 0)

    async def rows(self) -> int:
        return await self.scalar("SELECT count(*) FROM effects")

    async def under_way(self) -> int:
        return await self.scalar("SELECT count(*) FROM pgqueuer WHERE status = 'picked'")

    async def left(self) -> int:
        return await self.scalar("SELECT count(*) FROM pgqueuer WHERE status <> 'failed'")

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not await condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} did not come within {LIMIT:g} s")
            await asyncio.sleep(0.02)

    async def has_rows(self, count: int) -> None:
        async def enough() -> bool:
            return await self.rows() >= count

        await self.until(enough, f"row {count}")

    async def is_empty(self) -> None:
        async def empty() -> bool:
            return not await self.left()

        await self.until(empty, "the end of the queue")

    async def outcome(self, asked: int) -> dict[str, int]:
        """Compare what was asked for with what was done, and forget it."""
        rows = await self.rows()
        done = await self.scalar("SELECT count(DISTINCT number) FROM effects")
        async with self.database.write() as session:
            await session.execute(text("TRUNCATE effects, pgqueuer_log"))
        return {"done": done, "missing": asked - done, "doubles": rows - done}


@contextmanager
def ended(workers: list[Worker]) -> Iterator[None]:
    try:
        yield
    finally:
        for each in workers:
            each.kill()


async def survive(watch: Watch, jobs: int, count: int, kills: int) -> dict[str, Any]:
    """Kill workers while they work."""
    await watch.ask(SHORT, jobs)
    begun = time.monotonic()
    workers = [Worker(watch.url) for _ in range(count)]
    killed: list[Worker] = []
    with ended(workers):
        await watch.has_rows(1)
        first, rate = time.monotonic(), 0.0
        under_way: list[int] = []
        last = first
        for number in range(kills):
            # Spread over the middle half.
            await watch.has_rows(int(jobs * (0.25 + 0.5 * number / max(1, kills - 1))))
            if not number:
                rate = await watch.rows() / (time.monotonic() - first)
            victim = workers.pop(0)
            victim.kill()
            last = time.monotonic()
            under_way.append(await watch.under_way())
            killed.append(victim)
            workers.append(Worker(watch.url))
        await watch.is_empty()
        end = time.monotonic()
        for each in workers:
            each.stop()
    return {
        "jobs": jobs,
        "kills": len(killed),
        "under_way_at_kills": under_way,
        **await watch.outcome(jobs),
        "jobs_per_second": round(jobs / (end - begun)),
        "undisturbed_per_second": round(rate),
        "after_last_kill_s": round(end - last, 1),
    }


@asynccontextmanager
async def one_worker(watch: Watch) -> AsyncIterator[tuple[Worker, float]]:
    """Run a worker; yield it and how long it took to do its first job."""
    await watch.ask(SHORT, 1)
    one = Worker(watch.url)
    with ended([one]):
        await watch.is_empty()
        start = time.monotonic() - one.spawned
        await watch.outcome(1)
        yield one, start
        one.stop()


async def wait(watch: Watch, count: int, seconds: float) -> dict[str, Any]:
    """Let one worker do nothing, and then very many things that only wait."""
    async with one_worker(watch) as (one, start):
        await asyncio.sleep(1)  # what the start has left to do
        used, begun = one.cpu_seconds, time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        idle = (one.cpu_seconds - used) / (time.monotonic() - begun)
        idle_mb, used = one.megabytes, one.cpu_seconds
        await watch.ask(WAITING, count, seconds=seconds)
        begun = time.monotonic()
        most = connections = 0.0

        async def empty() -> bool:
            nonlocal most, connections
            most = max(most, one.megabytes)
            connections = max(connections, len(one.inside.net_connections("tcp")))
            return not await watch.left()

        await watch.until(empty, "the end of those that wait")
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
        "waiting_doubles": outcome["doubles"],
        "start_s": round(start, 2),
        "idle_mb": round(idle_mb, 1),
        "idle_cpu_percent": round(100 * idle, 2),
        "waiting_mb": round(most, 1),
        "connections": int(connections),
    }


def broken(result: dict[str, Any]) -> list[str]:
    """Return the promises that were not kept."""
    checks = {
        "every job is done": not result["missing"] and not result["waiting_missing"],
        "each effect once": not result["doubles"] and not result["waiting_doubles"],
        "waiting at once": result["waited_s"] <= result["waiting_s"] + OVERHEAD,
        "no attempt failed": not result["waiting_failed_attempts"],
    }
    return [promise for promise, kept in checks.items() if not kept]


def migrate(url: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": url},
        check=True,
        capture_output=True,
    )


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    watch = Watch(url)
    await watch.prepare()
    result = await survive(watch, options.jobs, options.workers, options.kills)
    print(
        f"{result['jobs']} jobs, {options.workers} workers, {result['kills']} killed:"
        f" {result['missing']} without effect, {result['doubles']} effects too many;"
        f" {result['jobs_per_second']} jobs/s in all, {result['undisturbed_per_second']} before the"
        f" first kill; the last were done {result['after_last_kill_s']} s after the last kill"
        f" (heartbeats are missed after {HEARTBEAT_TIMEOUT.seconds} s, looked for every"
        f" {POLL_INTERVAL.seconds} s)"
    )
    result |= await wait(watch, options.waiting, options.seconds)
    await watch.database.close()
    print(
        f"{result['waiting']} jobs that wait {result['waiting_s']:g} s, one worker: all done after"
        f" {result['waited_s']} s, {result['waiting_cpu_s']} s of a processor,"
        f" {result['waiting_failed_attempts']} failed attempts;"
        f" {result['waiting_mb']} MB, {result['connections']} connections"
    )
    print(
        f"An idle worker: first job {result['start_s']} s after its start, {result['idle_mb']} MB,"
        f" {result['idle_cpu_percent']} % of a processor"
    )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000, help="short ones (%(default)s)")
    parser.add_argument("--workers", type=int, default=3, help="at the same time (%(default)s)")
    parser.add_argument("--kills", type=int, default=3, help="in the middle (%(default)s)")
    parser.add_argument("--waiting", type=int, default=1000, help="that wait (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="each waits (%(default)s)")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobs-")))
        server = stack.enter_context(postgres(directory / "postgres"))
        url = asyncio.run(create_database(server, "benchmark"))
        migrate(url)
        result = asyncio.run(measure(url, options))
    promises = broken(result)
    for promise in promises:
        print(f"Not kept: {promise}")
    print(json.dumps(result | {"ok": not promises}))
    return 1 if promises else 0


if __name__ == "__main__":
    sys.exit(worker.main(factory, load_settings) if WORK in sys.argv else main())
