"""The sample application with jobs that wait for a test, in a worker or in the server.

`python -m quart_upsun.tests.process.jobs worker` or `… server`. These variables override timeouts,
in seconds: `FINISH` (before running jobs are requeued), `HEARTBEAT_TIMEOUT`, `POLL` and `EXIT`.
"""

import asyncio
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from quart import Quart
from sqlalchemy import text

from quart_upsun.jobs import runner
from quart_upsun.jobs.queue import JobContext, Task
from quart_upsun.logging import get_logger
from quart_upsun.server import serve as server
from quart_upsun.server import worker
from quart_upsun.tests.sample import Settings, create_app, load

log = get_logger(__name__)


def is_open() -> bool:
    """Tell whether the file that jobs of this process wait for exists."""
    return Path(os.environ["GATE"]).exists()


async def hold(running: JobContext) -> None:
    """Wait for the gate, then insert a row."""
    log.info("started", number=running.data["number"])
    while not is_open():  # noqa: ASYNC110 another process opens it
        await asyncio.sleep(0.02)
    await _insert_row(running)


async def block(running: JobContext) -> None:
    """Do the same; with `BLOCK` set, block the event loop meanwhile."""
    log.info("started", number=running.data["number"])
    while not is_open():
        if "BLOCK" in os.environ:
            time.sleep(0.02)  # noqa: ASYNC251
        else:
            await asyncio.sleep(0.02)
    await _insert_row(running)


async def quick(running: JobContext) -> None:
    await _insert_row(running)


async def _insert_row(running: JobContext) -> None:
    async with running.complete() as session:
        statement = text("INSERT INTO effects (number) VALUES (:number)")
        await session.execute(statement, {"number": running.data["number"]})


HOLD, BLOCK, QUICK = Task("hold", hold), Task("block", block), Task("quick", quick)


def factory(settings: Settings) -> Quart:
    if "FINISH" in os.environ:
        runner.SHUTDOWN_SECONDS = float(os.environ["FINISH"])
    if "HEARTBEAT_TIMEOUT" in os.environ:
        runner.HEARTBEAT_TIMEOUT = timedelta(seconds=float(os.environ["HEARTBEAT_TIMEOUT"]))
        runner.POLL_INTERVAL = timedelta(seconds=0.2)
    if "POLL" in os.environ:
        runner.POLL_INTERVAL = timedelta(seconds=float(os.environ["POLL"]))
    if "EXIT" in os.environ:
        worker.EXIT_SECONDS = int(os.environ["EXIT"])
    app = create_app(settings)
    app.extensions["quart_upsun"].jobs.register(HOLD, BLOCK, QUICK)
    return app


if __name__ == "__main__":
    sys.exit((worker if sys.argv[1] == "worker" else server).main(factory, load))
