"""Measure how long one worker takes to fetch many slow pages, on many hosts and on a few.

  python -m benchmarks.fetches [--links N]

Starts an embedded PostgreSQL in a temporary directory, a slow web server and one worker. In the
first part each page takes 3 s and has its own host. In the second part each page takes 0.2 s, and
the pages are on 10 hosts; a worker sends at most 2 concurrent requests to a host. The worker
resolves all hosts to this machine, and its fetcher allows that address. All jobs are enqueued
before the worker starts.

Prints the results and, as the last line, JSON with the results `own` and `few` of the two parts:

- hosts, page_s: number of hosts, and seconds per page
- least_s, limit_s: the shortest possible time, and the target, in seconds
- seconds: from the first request to the last saved link
- spread_s: from the first saved link to the last
- concurrent: maximum number of concurrent requests
- failed: links that could not be fetched
- jobs_failed: failed jobs
- idle_mb, mb: the worker's resident memory at the first request, and its peak
- cpu_s: the worker's CPU time
"""

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
from benchmarks import harness
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
# Allowed in addition to the shortest possible time.
OVERHEAD_SECONDS = 5.0
FEW, FEW_SECONDS, OWN_SECONDS = 10, 0.2, 3.0
TIMEOUT_SECONDS = 120.0
PAGE = b"<!doctype html><title>A page</title><meta name=description content='It was slow.'>"
LINKS = """
    WITH owner AS (
        INSERT INTO users (username, password_hash) VALUES ('ada', 'none') RETURNING id
    )
    INSERT INTO links (user_id, url)
    SELECT owner.id, 'http://site' || n % $4 || $2 || ':' || $3::text || '/' || n
    FROM owner, generate_series(1, $1::int) AS n RETURNING id
"""
FAILED_JOBS = "SELECT count(*) FROM pgqueuer WHERE status = 'failed'"
DONE = """
    SELECT count(fetched_at), count(fetch_error),
        extract(epoch FROM min(fetched_at))::float8, extract(epoch FROM max(fetched_at))::float8
    FROM links
"""


def factory(settings: Settings) -> Quart:
    """Create the application, with a fetcher that resolves all hosts to this machine."""
    port = int(os.environ["PAGES_PORT"])
    app = create_app(settings)

    @app.while_serving
    async def fetcher() -> AsyncGenerator[None, None]:
        async with Fetcher(
            allowed=lambda *_: True, ports={port}, resolver=LocalResolver()
        ) as app.extensions["fetcher"]:
            yield

    return app


class LocalResolver(Resolver):
    async def addresses(self, host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]


class Pages:
    """The web server: responds slowly to pages, and with 404 to requests for icons."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.first: float | None = None
        self.open = 0
        self.max_open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            status, body = "404 Not Found", b""
            if not head.startswith(b"GET /favicon.ico "):
                self.first = self.first or time.time()
                self.open += 1
                self.max_open = max(self.max_open, self.open)
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
    """Run the worker; kill it on exit."""
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
    """Raise the limit of open files for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise SystemExit(
            f"{files} open files are required, but the limit is {hard}. Use fewer --links, or raise"
            " the limit (ulimit -n)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))


async def prepare(url: str, links: int, port: int, hosts: int) -> None:
    """Insert the links and enqueue their jobs."""
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
    deadline = time.monotonic() + TIMEOUT_SECONDS
    idle = most = cpu = 0.0
    async with working(url, port) as process:
        done = 0
        while done < links:
            if time.monotonic() > deadline or not process.is_running():
                raise SystemExit(
                    f"Only {done} of {links} pages were fetched in {TIMEOUT_SECONDS:g} s."
                )
            await asyncio.sleep(0.1)
            most = max(most, process.memory_info().rss / 1e6)
            if pages.first and not idle:
                idle = most
            cpu = sum(process.cpu_times()[:2])
            done, failed, first, last = await connection.fetchrow(DONE)
        jobs_failed = await connection.fetchval(FAILED_JOBS)
    await connection.close()
    server.close()
    least = max(seconds, links / hosts / MAX_FETCHES_PER_HOST * seconds)
    return {
        "links": links,
        "hosts": hosts,
        "page_s": seconds,
        "least_s": round(least, 2),
        "limit_s": round(least + OVERHEAD_SECONDS, 2),
        "seconds": round(last - (pages.first or 0), 2),
        "spread_s": round(last - first, 2),
        "concurrent": pages.max_open,
        "failed": failed,
        "jobs_failed": jobs_failed,
        "idle_mb": round(idle),
        "mb": round(most),
        "cpu_s": round(cpu, 1),
    }


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each target that was missed."""
    limit, seconds = result["limit_s"], result["seconds"]
    checks = {
        f"all pages in {limit:g} s, measured {seconds} s": seconds <= limit,
        f"no failed pages, measured {result['failed']}": result["failed"] == 0,
        f"no failed jobs, measured {result['jobs_failed']}": result["jobs_failed"] == 0,
    }
    return [target for target, met in checks.items() if not met]


def main() -> int:
    options = harness.parser(
        "fetches", __doc__, links=(1000, "number of pages in each part")
    ).parse_args()
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
            harness.migrate(url)
            results[name] = result = asyncio.run(run(url, options.links, seconds, hosts))
            describe(result)
            missed = missed_targets(result)
            for target in missed:
                print(f"Target missed: {target}")
            result["ok"] = not missed
    ok = all(result["ok"] for result in results.values())
    print(json.dumps(results | {"ok": ok}))
    return 0 if ok else 1


def describe(result: dict[str, Any]) -> None:
    print(
        f"{result['links']} pages of {result['page_s']:g} s on {result['hosts']} hosts,"
        f" {result['concurrent']} concurrent requests: {result['seconds']} s (minimum"
        f" {result['least_s']:g} s, first to last result {result['spread_s']} s);"
        f" {result['mb']} MB (idle {result['idle_mb']} MB), {result['cpu_s']} s of CPU time,"
        f" {result['failed']} failed"
    )


if __name__ == "__main__":
    sys.exit(worker.main(factory, load_settings) if WORK in sys.argv else main())
