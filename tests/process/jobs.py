"""The application with jobs that take as long as a test wants, in a worker or in the server.

`python -m tests.process.jobs worker` or `… server`. A time of the toolkit's runner or
worker is replaced by the variable of its name: `FINISH=0.5`.
"""

import asyncio
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from quart import Quart
from sqlalchemy import text

from app import create_app
from app.settings import Settings, load
from quart_upsun.jobs import runner
from quart_upsun.jobs.queue import Running, Task
from quart_upsun.logging import get_logger
from quart_upsun.server import serve as server
from quart_upsun.server import worker

log = get_logger(__name__)


def is_open() -> bool:
    """Tell whether the file is there that jobs of this process wait for."""
    return Path(os.environ["GATE"]).exists()


async def hold(running: Running) -> None:
    """Wait at the gate, then leave a row."""
    log.info("begun", number=running.data["number"])
    while not is_open():  # noqa: ASYNC110 another process opens it
        await asyncio.sleep(0.02)
    await _leave_row(running)


async def block(running: Running) -> None:
    """Do the same; where `BLOCK` is set, nothing else happens meanwhile in the whole process."""
    log.info("begun", number=running.data["number"])
    while not is_open():
        if "BLOCK" in os.environ:
            time.sleep(0.02)  # noqa: ASYNC251
        else:
            await asyncio.sleep(0.02)
    await _leave_row(running)


async def quick(running: Running) -> None:
    await _leave_row(running)


async def _leave_row(running: Running) -> None:
    async with running.complete() as session:
        statement = text("INSERT INTO effects (number) VALUES (:number)")
        await session.execute(statement, {"number": running.data["number"]})


HOLD, BLOCK, QUICK = Task("hold", hold), Task("block", block), Task("quick", quick)


def factory(settings: Settings) -> Quart:
    if "FINISH" in os.environ:
        runner.FINISH = float(os.environ["FINISH"])
    if "HEARTBEAT_TIMEOUT" in os.environ:
        runner.HEARTBEAT_TIMEOUT = timedelta(seconds=float(os.environ["HEARTBEAT_TIMEOUT"]))
        runner.POLL = timedelta(seconds=0.2)
    if "EXIT" in os.environ:
        worker.EXIT = int(os.environ["EXIT"])
    app = create_app(settings)
    app.extensions["quart_upsun"].jobs.register(HOLD, BLOCK, QUICK)
    return app


if __name__ == "__main__":
    sys.exit((worker if sys.argv[1] == "worker" else server).main(factory, load))
