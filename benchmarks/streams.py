"""Measure the cost of open event streams in one server process, and the latency of events.

  python -m benchmarks.streams [--streams N] [--shared N] [--rounds N]

Starts an embedded PostgreSQL in a temporary directory, the production server with one process, and
a client process with a raw connection for each stream. Some of the streams belong to one user (the
shared user), each of the others to a different user. In each round, one transaction publishes an
event for the shared user, and one transaction for each other user. The client records when each
event arrives. Meanwhile another connection requests `GET /about/` repeatedly.

Prints the results and, as the last line, JSON:

- idle_mb, open_mb, after_mb: the server's resident memory without streams, with all streams, and
  after the events
- open_pss_mb: proportional set size (PSS) with all streams
- kb_per_stream: memory per stream
- shared_ms: from the commit of an event of the shared user to its arrival at each stream
- spread_ms: the same for the events of the other users
- about_idle_ms, about_ms: response time of /about/ without streams, and while events arrive
- connections: listening database connections
- drained_s: seconds from SIGTERM to the exit of the process

Times in milliseconds are given as median, 99th percentile and maximum.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from quart import Quart, Response
from sqlalchemy import text

from app import create_app
from app.settings import Settings, load_settings
from benchmarks import harness
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.live.events import publish
from quart_upsun.live.listener import APPLICATION_NAME
from quart_upsun.live.views import stream
from quart_upsun.server import serve as server

ROOT = Path(__file__).parent.parent
SERVE = "--serve"
SPARE_FILES = 200
MAX_OPENING = 100  # connections to open at the same time
PUBLISHERS = 4
TIMEOUT_SECONDS = 120.0


def factory(settings: Settings) -> Quart:
    """Create the application, with a stream that needs no login."""
    app = create_app(settings)
    app.extensions["quart_upsun"].live.per_user = app.extensions["quart_upsun"].live.per_process

    async def view(user_id: int) -> Response:
        return await stream(user_id)

    app.add_url_rule("/stream/<int:user_id>", view_func=view)
    return app


def raise_limit(files: int) -> None:
    """Raise the limit of open files for this process and its children.

    Raises:
        SystemExit: the hard limit is too low.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise SystemExit(
            f"{files} open files are required, but the limit is {hard}. Use fewer --streams, or"
            " raise the limit (ulimit -n)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


@contextmanager
def serving(url: str) -> Iterator[tuple[psutil.Process, int]]:
    """Run the server; yield its process and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.streams", SERVE],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PORT": "0",
            "WEB_CONCURRENCY": "1",
            "DATABASE_URL": url,
            "SECRET_KEY": "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0",
            "MAIL_URL": "console:",
            "RUN_JOBS": "false",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None  # noqa: S101
        port = 0
        for line in process.stdout:
            entry = json.loads(line)
            port = entry.get("port", port)
            if entry["event"] == "server ready":
                break
        # The rest of the log is short enough for the buffer of the pipe.
        yield psutil.Process(process.pid), port
    finally:
        process.kill()
        process.communicate()


class Clients:
    """The client connections, in their own process."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.arrivals: list[tuple[int, float]] = []  # the number of the event, and the time
        self.opened = 0
        self.ended = 0
        self.tasks: list[asyncio.Task[None]] = []
        self._turn = asyncio.Semaphore(MAX_OPENING)

    async def serve(self, orders: Connection) -> None:
        """Handle commands from the parent process."""
        loop = asyncio.get_running_loop()
        while True:
            order, *arguments = await loop.run_in_executor(None, orders.recv)
            match order:
                case "open":
                    self.tasks = [asyncio.create_task(self._read(user)) for user in arguments[0]]
                    await self._wait_until(lambda: self.opened == len(self.tasks))
                    answer: Any = None
                case "arrivals":
                    await self._arrived(arguments[0])
                    answer, self.arrivals = self.arrivals, []
                case "about":
                    answer = await self._ask(arguments[0], arguments[1])
                case _:
                    return
            orders.send(answer)

    async def _arrived(self, count: int) -> None:
        await self._wait_until(lambda: len(self.arrivals) >= count)

    async def _wait_until(self, condition: Any) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            if time.monotonic() > deadline or self.ended:
                raise SystemExit(
                    f"Timed out or disconnected: {self.opened} streams opened, {self.ended} closed,"
                    f" {len(self.arrivals)} events received."
                )
            await asyncio.sleep(0.01)

    async def _read(self, user: int) -> None:
        async with self._turn:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=4096)
            writer.write(
                f"GET /stream/{user} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
                "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101"
                " Firefox/140.0\r\nAccept-Language: en-GB,en;q=0.5\r\nCache-Control: no-cache\r\n"
                "Accept-Encoding: gzip, deflate, br, zstd\r\nSec-Fetch-Dest: empty\r\n"
                "Sec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\nPragma: no-cache\r\n"
                f"Cookie: login={'x' * 80}\r\nReferer: http://127.0.0.1/links/\r\n\r\n".encode()
            )
            while b"hello" not in await reader.readuntil(b"\n"):
                pass
        self.opened += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while line := await reader.readuntil(b"\n"):
                if line.startswith(b"data: {") and b"number" in line:
                    self.arrivals.append((json.loads(line[6:])["number"], time.time()))
        self.ended += 1

    async def _ask(self, least: int, seconds: float) -> list[float]:
        """Request the page for some time, and at least `least` times; return the response times."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        taken: list[float] = []
        begun = time.monotonic()
        while len(taken) < least or time.monotonic() - begun < seconds:
            asked = time.monotonic()
            writer.write(b"GET /about/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if " 200 " not in head.split("\r\n")[0]:
                raise SystemExit(f"Unexpected response: {head}")
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            taken.append(time.monotonic() - asked)
            await asyncio.sleep(0.01)
        writer.close()
        return taken


def run_clients(port: int, orders: Connection) -> None:
    asyncio.run(Clients(port).serve(orders))


def quantiles(seconds: Iterable[float]) -> dict[str, float]:
    ordered = sorted(1000 * each for each in seconds)
    return {
        "p50": round(ordered[len(ordered) // 2], 1),
        "p99": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 1),
        "max": round(ordered[-1], 1),
    }


class Publisher:
    """Publishes numbered events, and records when each was committed."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.committed: dict[int, float] = {}

    async def publish_to(self, user: int) -> None:
        number = len(self.committed)
        self.committed[number] = 0.0
        async with self.database.write() as session:
            await publish(session, user, "benchmark", number=number, title="A page that was kept")
            before = time.time()  # so that the delay includes the commit
        self.committed[number] = before

    async def publish_to_all(self, users: list[int]) -> None:
        left = iter(users)

        async def worker() -> None:
            for user in left:
                await self.publish_to(user)

        await asyncio.gather(*(worker() for _ in range(PUBLISHERS)))

    def delays(self, arrivals: list[tuple[int, float]]) -> list[float]:
        return [at - self.committed[number] for number, at in arrivals]


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    database = Database(parse_database_url(url), pool_size=PUBLISHERS)
    shared = min(options.shared, options.streams)
    apart = options.streams - shared
    async with database.write() as session:
        users = [
            *await session.scalars(
                text(
                    "INSERT INTO users (username, password_hash) SELECT 'user' || n, ''"
                    " FROM generate_series(0, :count) AS n RETURNING id"
                ),
                {"count": apart},
            )
        ]
    result: dict[str, Any] = {"streams": options.streams, "shared": shared}

    with serving(url) as (process, port):
        here, there = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        client = spawn.Process(target=run_clients, args=(port, there), daemon=True)
        client.start()

        async def ask(*order: Any) -> Any:
            here.send(order)
            return await asyncio.to_thread(here.recv)

        def record(name: str, value: Any, label: str) -> None:
            result[name] = value
            print(f"{label}: {value}", flush=True)

        def memory() -> float:
            return round(process.memory_info().rss / 1e6, 1)

        record(
            "about_idle_ms", quantiles(await ask("about", 100, 1.0)), "/about/ without streams, ms"
        )
        record("idle_mb", memory(), "memory without streams, MB")
        begun = time.monotonic()
        await ask("open", [users[0]] * shared + users[1:])
        record("opened_s", round(time.monotonic() - begun, 1), "time to open all streams, s")
        record("open_mb", memory(), "memory with all streams, MB")
        pss = process.memory_full_info().pss / 1e6
        record("open_pss_mb", round(pss, 1), "memory with all streams (PSS), MB")
        each = (result["open_mb"] - result["idle_mb"]) * 1000 / options.streams
        record("kb_per_stream", round(each, 1), "memory per stream, kB")

        publisher = Publisher(database)
        delays: dict[str, list[float]] = {"shared_ms": [], "spread_ms": []}
        pages: list[float] = []
        for _ in range(options.rounds):
            for name, targets, count in (
                ("shared_ms", users[:1], shared),
                ("spread_ms", users[1:], apart),
            ):
                if count == 0:
                    continue
                publishing = asyncio.create_task(publisher.publish_to_all(targets))
                pages += await ask("about", 20, 1.0)
                await publishing
                delays[name] += publisher.delays(await ask("arrivals", count))
        for name, label in (("shared_ms", "one user"), ("spread_ms", "many users")):
            if delays[name]:
                record(name, quantiles(delays[name]), f"event delay, {label}, ms")
        record("about_ms", quantiles(pages), "/about/ during events, ms")
        record("after_mb", memory(), "memory after the events, MB")
        async with database.read() as session:
            listening = await session.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"),
                {"name": APPLICATION_NAME},
            )
        record("connections", listening, "listening connections")
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 30)
        record("drained_s", round(time.monotonic() - begun, 1), "from SIGTERM to exit, s")
        client.kill()
    await database.close()
    return result


def main() -> None:
    if SERVE in sys.argv:
        sys.exit(server.main(factory, load_settings))
    parser = harness.parser(
        "streams",
        __doc__,
        streams=(5000, "number of streams"),
        rounds=(5, "number of rounds"),
    )
    parser.add_argument(
        "--shared", type=int, metavar="N", help="streams of the shared user (default: half of them)"
    )
    options = parser.parse_args()
    if options.shared is None:
        options.shared = options.streams // 2
    raise_limit(options.streams + SPARE_FILES)
    with harness.temporary_database("streams", durable=False) as (url, _):
        print(json.dumps(asyncio.run(measure(url, options))))


if __name__ == "__main__":
    main()
