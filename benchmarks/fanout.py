"""Measure PostgreSQL's notifications against the number of listening connections: 2 to 32.

  python -m benchmarks.fanout [--rate N] [--seconds S] [--users N]

Starts an embedded PostgreSQL in a temporary directory. A child process listens with the listeners
of the toolkit (`quart_upsun.live.listener`), as each server process with open streams does with
one. This process publishes events with the function of the toolkit: first at a fixed rate, which
shows the latency, and then as fast as four connections can, which shows the throughput.

Prints the results and, as the last line, JSON. For each number of listeners it contains:

- p50_ms, p99_ms: from before the commit of an event to its arrival at the last listener, at the
  fixed rate
- events_per_second: throughput, until all listeners have received all events
- database_ms: CPU time of PostgreSQL per event, at full speed
- missing: notifications that did not arrive
"""

import argparse
import asyncio
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks import harness
from benchmarks.load import quantile
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.live.events import publish
from quart_upsun.live.listener import APPLICATION_NAME, Listener
from quart_upsun.logging import configure_logging

LISTENERS = (2, 4, 8, 16, 32)
PUBLISHERS = 4
TIMEOUT_SECONDS = 30.0


async def listen(url: str, count: int, orders: Connection) -> None:
    """Listen with `count` connections, and answer orders from the parent process.

    An order is a number of notifications. The answer, once that many have arrived or after a
    timeout, is the list of user ids with the time of each.
    """
    arrivals: list[tuple[int, float]] = []
    tasks = [
        asyncio.create_task(
            Listener(
                parse_database_url(url),
                notified=lambda user_id: arrivals.append((user_id, time.time())),
                connected=lambda: None,
            ).run()
        )
        for _ in range(count)
    ]
    while expected := await asyncio.to_thread(orders.recv):
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(arrivals) < expected and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        answer, arrivals[:] = [*arrivals], []
        orders.send(answer)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def run_listeners(url: str, count: int, orders: Connection) -> None:
    configure_logging("warning")
    asyncio.run(listen(url, count, orders))


class Publisher:
    """Publishes events, and records when each was about to be committed."""

    def __init__(self, database: Database, users: list[int]) -> None:
        self._database = database
        self._users = users
        self._next = 0
        self.committed: list[tuple[int, float]] = []

    async def publish(self) -> None:
        """Publish an event to the next user."""
        user = self._users[self._next % len(self._users)]
        self._next += 1
        async with self._database.write() as session:
            await publish(session, user, "benchmark", title="A page that was kept")
            before = time.time()
        self.committed.append((user, before))

    async def at_rate(self, rate: float, seconds: float) -> None:
        """Publish at a fixed rate, however long each event takes."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(begun + number / rate - time.monotonic())
                group.create_task(self.publish())

    async def at_full_speed(self, seconds: float) -> None:
        """Publish with some connections, one event after the other on each."""
        end = time.monotonic() + seconds

        async def work() -> None:
            while time.monotonic() < end:
                await self.publish()

        await asyncio.gather(*(work() for _ in range(PUBLISHERS)))

    def take(self) -> list[tuple[int, float]]:
        """Return and forget what was committed."""
        taken, self.committed = self.committed, []
        return taken


def delays(
    committed: list[tuple[int, float]], arrivals: list[tuple[int, float]], listeners: int
) -> list[float]:
    """Return the seconds from each commit to the last of its arrivals.

    Events of one user arrive in the order of their commits, at each listener.
    """
    times: dict[int, list[float]] = {}
    for user, at in arrivals:
        times.setdefault(user, []).append(at)
    starts: dict[int, list[float]] = {}
    for user, at in committed:
        starts.setdefault(user, []).append(at)
    found = []
    for user, begun in starts.items():
        arrived = sorted(times.get(user, []))
        found += [
            arrived[(number + 1) * listeners - 1] - at
            for number, at in enumerate(sorted(begun))
            if len(arrived) >= (number + 1) * listeners
        ]
    return found


async def wait_for_listeners(database: Database, count: int) -> None:
    """Wait until exactly `count` connections listen."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
    while True:
        async with database.read() as session:
            found = await session.scalar(query, {"name": APPLICATION_NAME})
        if found == count:
            return
        if time.monotonic() > deadline:
            raise SystemExit(
                f"{found} connections listen after {TIMEOUT_SECONDS:g} s, not {count}."
            )
        await asyncio.sleep(0.05)


async def measure(
    url: str,
    database: Database,
    server: harness.DatabaseServer,
    publisher: Publisher,
    count: int,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Measure with `count` listeners."""
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=run_listeners, args=(url, count, there), daemon=True
    )
    child.start()

    async def received(events: int) -> list[tuple[int, float]]:
        here.send(events * count)
        if not await asyncio.to_thread(here.poll, TIMEOUT_SECONDS + 10):
            raise SystemExit("The listening process does not answer.")
        answer: list[tuple[int, float]] = here.recv()
        return answer

    try:
        await wait_for_listeners(database, count)
        await publisher.at_full_speed(0.3)  # warm-up: connects the publishers
        await received(len(publisher.take()))
        await publisher.at_rate(options.rate, options.seconds)
        paced = publisher.take()
        arrivals = await received(len(paced))
        taken = delays(paced, arrivals, count)
        missing = len(paced) * count - len(arrivals)
        used, begun = server.cpu_seconds(), time.monotonic()
        await publisher.at_full_speed(options.seconds)
        published = len(publisher.take())
        arrivals = await received(published)
        seconds = time.monotonic() - begun
        here.send(0)
        await asyncio.to_thread(child.join, 10)
    finally:
        child.kill()
        child.join()
    await wait_for_listeners(database, 0)
    return {
        "p50_ms": round(quantile(taken, 0.5), 1),
        "p99_ms": round(quantile(taken, 0.99), 1),
        "events_per_second": round(published / seconds),
        "database_ms": round(1000 * (server.cpu_seconds() - used) / published, 3),
        "missing": missing + published * count - len(arrivals),
    }


async def run(url: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    database = Database(parse_database_url(url), pool_size=PUBLISHERS * 2)
    async with database.write() as session:
        users = [
            *await session.scalars(
                text(
                    "INSERT INTO users (username, password_hash) SELECT 'user' || n, ''"
                    " FROM generate_series(1, :count) AS n RETURNING id"
                ),
                {"count": options.users},
            )
        ]
    server, publisher = harness.DatabaseServer(directory), Publisher(database, users)
    results = {}
    for count in LISTENERS:
        results[str(count)] = each = await measure(url, database, server, publisher, count, options)
        print(f"{count} listeners: {each}", flush=True)
    await database.close()
    return {"rate": options.rate, "publishers": PUBLISHERS, "listeners": results}


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each number of listeners that lost notifications."""
    return [
        f"no notification is lost, {each['missing']} of {count} listeners"
        for count, each in result["listeners"].items()
        if each["missing"]
    ]


def main() -> int:
    options = harness.parser(
        "fanout",
        __doc__,
        rate=(100, "events per second of the fixed rate"),
        seconds=(4.0, "duration of each measurement"),
        users=(1000, "number of users whose events are published"),
    ).parse_args()
    with harness.temporary_database("fanout", durable=False) as (url, directory):
        result = asyncio.run(run(url, directory, options))
    return harness.finish(result, missed_targets(result))


if __name__ == "__main__":
    sys.exit(main())
