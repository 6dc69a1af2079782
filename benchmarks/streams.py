"""What open streams of live events cost one server process, and how quickly an event reaches all.

  python -m benchmarks.streams [--streams N] [--shared N] [--rounds N]

Starts the embedded PostgreSQL in a directory that is removed at the end, the real server with one
process, and a client process with a raw connection for each stream. Some of the streams are one
user's, each of the others belongs to a user of its own. In each round one transaction for the first
of these and one for each of the others publish an event, and every client notes when it arrives.
Meanwhile `GET /about/` is asked for all the time, on a connection of its own.

Prints a line for people for each result, and at the end one line of JSON:

- idle_mb, open_mb, after_mb: the server's resident memory without streams, with all of them, and
  after the events; open_pss_mb: without what it shares with other processes
- kb_per_stream: what one more stream takes
- shared_ms: from the commit of one event for the shared user to its arrival at each of the streams
- spread_ms: the same for an event of every other user, from the commit of each
- about_idle_ms, about_ms: answers of /about/ without streams, and while the events arrive
- connections: those that listen in the database
- drained_s: from SIGTERM to the end of the process

Times are milliseconds, as the median, the 99th percentile and the largest.
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
import tempfile
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
from embedded_postgres import create_database, postgres
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.live.events import publish
from quart_upsun.live.listener import APPLICATION_NAME
from quart_upsun.live.views import stream
from quart_upsun.server import serve as server

ROOT = Path(__file__).parent.parent
SERVE = "--serve"
SPARE_FILES = 200
OPENING = 100  # connections that are being opened at the same time
PUBLISHERS = 4
WAIT = 120.0


def factory(settings: Settings) -> Quart:
    """The application, with a stream for whoever asks."""
    app = create_app(settings)
    app.extensions["quart_upsun"].live.per_user = app.extensions["quart_upsun"].live.per_process

    async def view(user_id: int) -> Response:
        return await stream(user_id)

    app.add_url_rule("/stream/<int:user_id>", view_func=view)
    return app


def raise_limit(files: int) -> None:
    """Let this process and those it starts open so many files.

    Raises:
        SystemExit: they may not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise SystemExit(f"{files} open files are needed, and {hard} allowed: take fewer streams.")
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
            said = json.loads(line)
            port = said.get("port", port)
            if said["event"] == "server ready":
                break
        # Nobody reads on: what it says from now on is little.
        yield psutil.Process(process.pid), port
    finally:
        process.kill()
        process.communicate()


class Clients:
    """The connections, in the process that holds them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.arrivals: list[tuple[int, float]] = []  # the number an event carries, and when
        self.opened = 0
        self.ended = 0
        self.tasks: list[asyncio.Task[None]] = []
        self._turn = asyncio.Semaphore(OPENING)

    async def serve(self, orders: Connection) -> None:
        """Do what the other process asks for."""
        loop = asyncio.get_running_loop()
        while True:
            order, *arguments = await loop.run_in_executor(None, orders.recv)
            match order:
                case "open":
                    self.tasks = [asyncio.create_task(self._read(user)) for user in arguments[0]]
                    await self._until(lambda: self.opened == len(self.tasks))
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
        await self._until(lambda: len(self.arrivals) >= count)

    async def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            if time.monotonic() > deadline or self.ended:
                raise SystemExit(
                    f"{self.opened} opened, {self.ended} ended, {len(self.arrivals)} arrivals"
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
        """Ask for the page for so long, and so often at least; return how long each took."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        taken: list[float] = []
        begun = time.monotonic()
        while len(taken) < least or time.monotonic() - begun < seconds:
            asked = time.monotonic()
            writer.write(b"GET /about/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if " 200 " not in head.split("\r\n")[0]:
                raise SystemExit(f"the page was not answered: {head}")
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            taken.append(time.monotonic() - asked)
            await asyncio.sleep(0.01)
        writer.close()
        return taken


def hold_clients(port: int, orders: Connection) -> None:
    asyncio.run(Clients(port).serve(orders))


def quantiles(seconds: Iterable[float]) -> dict[str, float]:
    ordered = sorted(1000 * each for each in seconds)
    return {
        "p50": round(ordered[len(ordered) // 2], 1),
        "p99": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 1),
        "max": round(ordered[-1], 1),
    }


class Published:
    """Knows when each event was committed, by the number it carries."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.committed: dict[int, float] = {}

    async def to(self, user: int) -> None:
        number = len(self.committed)
        self.committed[number] = 0.0
        async with self.database.write() as session:
            await publish(session, user, "benchmark", number=number, title="A page that was kept")
            before = time.time()  # the commit takes a moment, which counts as the event's
        self.committed[number] = before

    async def to_all(self, users: list[int]) -> None:
        left = iter(users)

        async def some() -> None:
            for user in left:
                await self.to(user)

        await asyncio.gather(*(some() for _ in range(PUBLISHERS)))

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
        client = spawn.Process(target=hold_clients, args=(port, there), daemon=True)
        client.start()

        async def ask(*order: Any) -> Any:
            here.send(order)
            return await asyncio.to_thread(here.recv)

        def note(name: str, value: Any, words: str) -> None:
            result[name] = value
            print(f"{words}: {value}", flush=True)

        def memory() -> float:
            return round(process.memory_info().rss / 1e6, 1)

        note("about_idle_ms", quantiles(await ask("about", 100, 1.0)), "/about/, no streams, ms")
        note("idle_mb", memory(), "memory without streams, MB")
        begun = time.monotonic()
        await ask("open", [users[0]] * shared + users[1:])
        note("opened_s", round(time.monotonic() - begun, 1), "all streams opened, s")
        note("open_mb", memory(), "memory with all streams, MB")
        pss = process.memory_full_info().pss / 1e6
        note("open_pss_mb", round(pss, 1), "of that not shared (PSS), MB")
        each = (result["open_mb"] - result["idle_mb"]) * 1000 / options.streams
        note("kb_per_stream", round(each, 1), "one stream, kB")

        published = Published(database)
        delays: dict[str, list[float]] = {"shared_ms": [], "spread_ms": []}
        pages: list[float] = []
        for _ in range(options.rounds):
            for name, targets, count in (
                ("shared_ms", users[:1], shared),
                ("spread_ms", users[1:], apart),
            ):
                if count == 0:
                    continue
                publishing = asyncio.create_task(published.to_all(targets))
                pages += await ask("about", 20, 1.0)
                await publishing
                delays[name] += published.delays(await ask("arrivals", count))
        for name, words in (("shared_ms", "one user's streams"), ("spread_ms", "everybody's")):
            if delays[name]:
                note(name, quantiles(delays[name]), f"an event to {words}, ms")
        note("about_ms", quantiles(pages), "/about/ meanwhile, ms")
        note("after_mb", memory(), "memory after the events, MB")
        async with database.read() as session:
            listening = await session.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"),
                {"name": APPLICATION_NAME},
            )
        note("connections", listening, "connections that listen")
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 30)
        note("drained_s", round(time.monotonic() - begun, 1), "from SIGTERM to the end, s")
        client.kill()
    await database.close()
    return result


def main() -> None:
    if SERVE in sys.argv:
        sys.exit(server.main(factory, load_settings))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=5000, metavar="N")
    parser.add_argument(
        "--shared", type=int, metavar="N", help="streams of one user (default: half of them)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    options = parser.parse_args()
    if options.shared is None:
        options.shared = options.streams // 2
    raise_limit(options.streams + SPARE_FILES)
    with (
        tempfile.TemporaryDirectory(prefix="streams-") as directory,
        postgres(Path(directory), durable=False) as cluster,
    ):
        url = asyncio.run(create_database(cluster, "streams"))
        subprocess.run(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": url},
            check=True,
            stderr=subprocess.DEVNULL,
        )
        print(json.dumps(asyncio.run(measure(url, options))))


if __name__ == "__main__":
    main()
