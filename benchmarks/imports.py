"""Measure an import and an export of 50,000 links, and how they affect the process.

  python -m benchmarks.imports [--links N]

Starts an embedded PostgreSQL in a temporary directory, uploads a bookmark file in the format of
Firefox, and runs the import job in this process. Meanwhile a task wakes up every 5 ms to measure
the lag of the event loop. Prints JSON:

- links, megabytes: size of the file
- receive_s, import_s, export_s: duration of the upload, the import job and the export
- lag_ms, export_lag_ms: maximum lag of the event loop during the import and the export
- grown_mb: peak growth of the process's memory
"""

import asyncio
import gc
import json
import os
import time
from collections.abc import AsyncIterator

import psutil
from pydantic import SecretStr

from app import create_app
from app.bookmarks import exports, jobs, uploads
from app.settings import Settings
from benchmarks import harness
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing import runner_of
from tests.features.factories import Person

ENVIRONMENT = "benchmark"
TICK_SECONDS = 0.005


class Watch:
    """Measures the lag of the event loop, and the peak memory of the process."""

    def __init__(self) -> None:
        self.lag = 0.0
        self._process = psutil.Process()
        self._before = self.most = self._process.memory_info().rss

    async def run(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            self.lag = max(self.lag, time.perf_counter() - started - TICK_SECONDS)
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
        secret_key=SecretStr("a secret key used only by this benchmark"),
        database_environment=ENVIRONMENT,
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
            raise RuntimeError(f"the import is incomplete: {done}")
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
    options = harness.parser(
        "imports", __doc__, links=(jobs.MAX_LINKS, "number of links")
    ).parse_args()
    with harness.temporary_database("imports", DATABASE_ENVIRONMENT=ENVIRONMENT) as (url, _):
        os.environ |= {"DATABASE_URL": url, "DATABASE_ENVIRONMENT": ENVIRONMENT}
        print(json.dumps(asyncio.run(measure(url, options.links))))


if __name__ == "__main__":
    main()
