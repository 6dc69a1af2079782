"""How long one worker takes for many slow pages: each on a host of its own, and on a few hosts.

  python -m benchmarks.fetches [--links N]

Starts the embedded PostgreSQL in a directory that is removed at the end, a web server that answers
each request for a page after some time, and one worker. Pages of 3 s are each on a host of their
own; pages of 0.2 s are on 10 hosts, of which a worker asks for 2 pages at a time. The worker's
resolver is told that all hosts are this machine, and its fetcher that it may go there. The jobs are
in the queue when the worker starts.

Prints a line for people for each result, and at the end one line of JSON with `own` and `few`:

- hosts, page_s: how many hosts there are, and how many seconds a page takes
- least_s: seconds that the pages take at least
- seconds: from the first request to the last link that was written down
- spread_s: from the first link that was written down to the last
- at_once: the most requests that were open at the same time
- failed: links that could not be fetched
- jobs_failed: jobs that were given up
- idle_mb, mb: the worker's resident memory at the first request, and at most
- cpu_s: processor time that it took in all
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from quart import Quart

from app import create_app
from app.fetching.jobs import FETCH_TASK
from app.settings import Settings, load_settings
from benchmarks.filling import migrate
from embedded_postgres import create_database, postgres
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.fetching import MAX_FETCHES_PER_HOST, Fetcher, Resolver
from quart_upsun.jobs.queue import enqueue_many
from quart_upsun.server import worker

ROOT = Path(__file__).parent.parent
WORK = "--work"
HOSTS = ".benchmark.example"
SPARE_FILES = 200
# Seconds beyond the least that all pages may take.
MORE = 5.0
FEW, FEW_SECONDS, OWN_SECONDS = 10, 0.2, 3.0
WAIT = 120.0
PAGE = b"<!doctype html><title>A page</title><meta name=description content='It was slow.'>"
LINKS = """
    WITH owner AS (
        INSERT INTO users (username, password_hash) VALUES ('ada', 'none') RETURNING id
    )
    INSERT INTO links (user_id, url)
    SELECT owner.id, 'http://site' || n % $4 || $2 || ':' || $3::text || '/' || n
    FROM owner, generate_series(1, $1::int) AS n RETURNING id
"""
GIVEN_UP = "SELECT count(*) FROM pgqueuer WHERE status = 'failed'"
DONE = """
    SELECT count(fetched_at), count(fetch_error),
        extract(epoch FROM min(fetched_at))::float8, extract(epoch FROM max(fetched_at))::float8
    FROM links
"""


def factory(settings: Settings) -> Quart:
    """The application, for which the hosts of the benchmark are on this machine."""
    port = int(os.environ["PAGES_PORT"])
    app = create_app(settings)

    @app.while_serving
    async def fetcher() -> AsyncGenerator[None, None]:
        async with Fetcher(
            allowed=lambda *_: True, ports={port}, resolver=ThisMachine()
        ) as app.extensions["fetcher"]:
            yield

    return app


class ThisMachine(Resolver):
    async def addresses(self, host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]


class Pages:
    """The web server: pages are slow, and whatever else is asked for is not there."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.first: float | None = None
        self.open = 0
        self.most = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            status, body = "404 Not Found", b""
            if not head.startswith(b"GET /favicon.ico "):
                self.first = self.first or time.time()
                self.open += 1
                self.most = max(self.most, self.open)
                await asyncio.sleep(self.seconds)
                self.open -= 1
                status, body = "200 OK", PAGE
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        writer.close()


@asynccontextmanager
async def working(url: str, port: int) -> AsyncIterator[psutil.Process]:
    """Run the worker."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.fetches", WORK),
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": url,
            "PAGES_PORT": str(port),
            "SECRET_KEY": "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0",
            "MAIL_URL": "console:",
            "LOG_LEVEL": "warning",
        },
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def raise_limit(files: int) -> None:
    """Let this process and those it starts open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise SystemExit(f"{files} open files are needed, and {hard} allowed: take fewer links.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))


async def prepare(url: str, links: int, port: int, hosts: int) -> None:
    """Save the links, and ask for their jobs."""
    connection = await asyncpg.connect(url)
    ids = [row["id"] for row in await connection.fetch(LINKS, links, HOSTS, str(port), hosts)]
    await connection.close()
    database = Database(parse_database_url(url), pool_size=1)
    async with database.write() as session:
        await enqueue_many(
            session,
            FETCH_TASK,
            [{"link": each} for each in ids],
            keys=[f"{FETCH_TASK.name} {each}" for each in ids],
        )
    await database.close()


async def run(url: str, links: int, seconds: float, hosts: int) -> dict[str, Any]:
    pages = Pages(seconds)
    server = await asyncio.start_server(pages.answer, "127.0.0.1", 0, backlog=links)
    port = server.sockets[0].getsockname()[1]
    await prepare(url, links, port, hosts)
    connection = await asyncpg.connect(url)
    deadline = time.monotonic() + WAIT
    idle = most = cpu = 0.0
    async with working(url, port) as process:
        done = 0
        while done < links:
            if time.monotonic() > deadline or not process.is_running():
                raise SystemExit(f"{done} of {links} pages were fetched in {WAIT:g} s")
            await asyncio.sleep(0.1)
            most = max(most, process.memory_info().rss / 1e6)
            if pages.first and not idle:
                idle = most
            cpu = sum(process.cpu_times()[:2])
            done, failed, first, last = await connection.fetchrow(DONE)
        given_up = await connection.fetchval(GIVEN_UP)
    await connection.close()
    server.close()
    return {
        "links": links,
        "hosts": hosts,
        "page_s": seconds,
        "least_s": round(max(seconds, links / hosts / MAX_FETCHES_PER_HOST * seconds), 2),
        "seconds": round(last - (pages.first or 0), 2),
        "spread_s": round(last - first, 2),
        "at_once": pages.most,
        "failed": failed,
        "jobs_failed": given_up,
        "idle_mb": round(idle),
        "mb": round(most),
        "cpu_s": round(cpu, 1),
    }


def broken(result: dict[str, Any]) -> list[str]:
    """Return the promises that were not kept."""
    promises = {
        f"all pages within {result['least_s'] + MORE:g} s; it took {result['seconds']} s": result[
            "seconds"
        ]
        <= result["least_s"] + MORE,
        f"every page is fetched; {result['failed']} were not": result["failed"] == 0,
        f"no job is given up; {result['jobs_failed']} were": result["jobs_failed"] == 0,
    }
    return [promise for promise, kept in promises.items() if not kept]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", type=int, default=1000, metavar="N", help="%(default)s")
    options = parser.parse_args()
    raise_limit(2 * options.links + SPARE_FILES)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fetches-")))
        server = stack.enter_context(postgres(directory / "postgres"))
        results = {}
        for name, hosts, seconds in (
            ("own", options.links, OWN_SECONDS),
            ("few", FEW, FEW_SECONDS),
        ):
            url = asyncio.run(create_database(server, name))
            migrate(url)
            results[name] = asyncio.run(run(url, options.links, seconds, hosts))
            describe(results[name])
    promises = [promise for result in results.values() for promise in broken(result)]
    for promise in promises:
        print(f"Not kept: {promise}")
    print(json.dumps(results | {"ok": not promises}))
    return 1 if promises else 0


def describe(result: dict[str, Any]) -> None:
    print(
        f"{result['links']} pages that take {result['page_s']:g} s each, on {result['hosts']}"
        f" hosts, {result['at_once']} of them at once: all fetched after {result['seconds']} s (at"
        f" least {result['least_s']:g}), the first and the last {result['spread_s']} s apart;"
        f" {result['mb']} MB (idle {result['idle_mb']}), {result['cpu_s']} s of a processor,"
        f" {result['failed']} failed"
    )


if __name__ == "__main__":
    sys.exit(worker.main(factory, load_settings) if WORK in sys.argv else main())
