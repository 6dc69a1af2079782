"""Measure jobs per second against the number of workers: 1, 2, 4 and 8.

  python -m benchmarks.workers [--jobs N]

Starts an embedded PostgreSQL in a temporary directory. For each number of workers
(`app.worker`, as in benchmarks/jobs.py) it waits until they listen, and enqueues the jobs in one
transaction. Each job inserts a row in the transaction that completes it.

Prints the results and, as the last line, JSON. For each number of workers it contains:

- jobs_per_second: from the commit of the jobs to the end of the last
- worker_ms, database_ms: CPU time per job of the workers and of PostgreSQL
- mb: memory of a worker (resident), the largest
- connections: database connections of a worker, the most
- missing, duplicates: jobs without a row, and surplus rows

Exit code 1 if a job does not take effect exactly once.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.jobs import BATCH_SIZE, SHORT, Watch, Worker, killed_at_exit
from quart_upsun.jobs.queue import enqueue_many

WORKERS = (1, 2, 4, 8)
LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'quart-upsun jobs'"
CONNECTED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE application_name IN ('quart-upsun', 'quart-upsun jobs') AND pid <> pg_backend_pid()
"""


async def enqueue(watch: Watch, jobs: int) -> None:
    """Enqueue all jobs in one transaction, so that all workers start at the same time."""
    async with watch.database.write() as session:
        for first in range(0, jobs, BATCH_SIZE):
            numbers = range(first, min(first + BATCH_SIZE, jobs))
            await enqueue_many(session, SHORT, [{"number": number} for number in numbers])


async def measure(
    watch: Watch, server: harness.DatabaseServer, count: int, jobs: int
) -> dict[str, float]:
    """Measure with `count` workers."""

    async def all_listen() -> bool:
        return await watch.scalar(LISTENING) == count

    async def none_connected() -> bool:
        return await watch.scalar(LISTENING) == 0

    own = await watch.scalar(CONNECTED) + 1  # with this connection
    workers = [Worker(watch.url) for _ in range(count)]
    with killed_at_exit(workers):
        await watch.wait_until(all_listen, f"{count} workers")
        await enqueue(watch, 20 * count)  # warm-up: fills their connection pools
        await watch.wait_for_empty_queue()
        await watch.outcome(20 * count)
        used = sum(each.cpu_seconds for each in workers)
        database = server.cpu_seconds()
        await enqueue(watch, jobs)
        begun = time.monotonic()
        await watch.wait_for_empty_queue()
        seconds = time.monotonic() - begun
        used = sum(each.cpu_seconds for each in workers) - used
        database = server.cpu_seconds() - database
        connections = await watch.scalar(CONNECTED) + 1 - own
        outcome = await watch.outcome(jobs)
        megabytes = max(each.megabytes for each in workers)
        for each in workers:
            each.stop()
    await watch.wait_until(none_connected, "the end of the workers")
    return {
        "jobs_per_second": round(jobs / seconds),
        "worker_ms": round(1000 * used / jobs, 2),
        "database_ms": round(1000 * database / jobs, 2),
        "mb": round(megabytes),
        "connections": -(-connections // count),
        "missing": outcome["missing"],
        "duplicates": outcome["duplicates"],
    }


async def run(url: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    watch, server = Watch(url), harness.DatabaseServer(directory)
    await watch.prepare()
    results = {}
    for count in WORKERS:
        results[str(count)] = each = await measure(watch, server, count, options.jobs)
        print(f"{count} workers: {each}", flush=True)
    await watch.database.close()
    return {"jobs": options.jobs, "workers": results}


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each number of workers with lost or repeated jobs."""
    return [
        f"each job takes effect once, {each['missing']} missing and {each['duplicates']} duplicated"
        f" with {count} workers"
        for count, each in result["workers"].items()
        if each["missing"] or each["duplicates"]
    ]


def main() -> int:
    options = harness.parser(
        "workers", __doc__, jobs=(3000, "number of jobs for each number of workers")
    ).parse_args()
    with harness.temporary_database("workers") as (url, directory):
        result = asyncio.run(run(url, directory, options))
    return harness.finish(result, missed_targets(result))


if __name__ == "__main__":
    sys.exit(main())
