"""How long an import of 50,000 links takes, what it does to the process meanwhile, and an export.

  python -m benchmarks.imports [--links N]

Starts the embedded PostgreSQL in a directory that is removed at the end, sends a file as Firefox
writes it, and does the job in this process, beside a task that only wakes up every 5 ms. Prints a
line of JSON:

- links, megabytes: of the file
- receive_s, import_s, export_s: until the file is kept, its links are there, and are read again
- lag_ms, export_lag_ms: the longest that the event loop was late
- grown_mb: memory of the process, at the most, beyond what it had before
"""

import argparse
import asyncio
import gc
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
from alembic import command
from alembic.config import Config
from pydantic import SecretStr

from app import create_app
from app.bookmarks import exports, jobs, uploads
from app.settings import ROOT, Settings
from embedded_postgres import postgres
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing import runner_of
from tests.features.factories import Person

TICK = 0.005  # seconds


class Watch:
    """Sees how late the event loop is, and how large the process gets."""

    def __init__(self) -> None:
        self.lag = 0.0
        self._process = psutil.Process()
        self._before = self.most = self._process.memory_info().rss

    async def run(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(TICK)
            self.lag = max(self.lag, time.perf_counter() - started - TICK)
            self.most = max(self.most, self._process.memory_info().rss)

    @property
    def grown(self) -> int:
        return self.most - self._before


async def bookmarks(links: int) -> AsyncIterator[bytes]:
    yield b"<!DOCTYPE NETSCAPE-Bookmark-file-1>\n<DL><p>\n"
    for number in range(links):
        if number % 50 == 0:
            yield f"<DT><H3>Folder {number // 50 % 40}</H3>\n<DL><p>\n".encode()
        yield (
            f'<DT><A HREF="https://site{number % 977}.example.com/articles/{number}?x=1&amp;y=2"'
            f' ADD_DATE="{1_600_000_000 + number}" ICON="data:image/png;base64,{"A" * 200}"'
            f' TAGS="news,python">Title of the article number {number} &amp; more</A>\n'
        ).encode()
        if number % 50 == 49:
            yield b"</DL><p>\n"


async def measure(url: str, links: int) -> dict[str, float]:
    settings = Settings(
        database_url=parse_database_url(url),
        secret_key=SecretStr("a key for measuring, of no worth elsewhere"),
        run_jobs=False,
    )
    app = create_app(settings)
    async with app.test_app():
        database = app.extensions["quart_upsun"].database
        person = await Person().create(database)
        gc.collect()  # as the worker does
        gc.freeze()
        watch = Watch()
        watching = asyncio.create_task(watch.run())
        started = time.perf_counter()
        number = await uploads.receive_upload(database, person.id, bookmarks(links))
        received = time.perf_counter()
        await runner_of(app, jobs.IMPORT_TASK).run_due()
        imported = time.perf_counter()
        lag, watch.lag = watch.lag, 0.0
        size = 0
        async for piece in exports.stream_export(database, person.id, exports.FORMATS["html"]):
            size += len(piece)
        exported = time.perf_counter()
        watching.cancel()
        async with database.read() as session:
            done = await jobs.get_import(session, person.id, number)
        if done is None or (done.state, done.added) != ("done", links):
            raise RuntimeError(f"not all was imported: {done}")
    return {
        "links": links,
        "megabytes": round(done.size / 1e6, 1),
        "receive_s": round(received - started, 2),
        "import_s": round(imported - received, 2),
        "export_s": round(exported - imported, 2),
        "lag_ms": round(1000 * lag),
        "export_lag_ms": round(1000 * watch.lag),
        "grown_mb": round(watch.grown / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--links", type=int, default=jobs.MAX_LINKS)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="quart-upsun-") as directory,
        postgres(Path(directory) / "data", durable=True) as url,
    ):
        os.environ["DATABASE_URL"] = url
        command.upgrade(Config(ROOT / "alembic.ini"), "head")
        print(json.dumps(asyncio.run(measure(url, arguments.links))))


if __name__ == "__main__":
    main()
