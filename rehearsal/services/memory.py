"""Run the services that keep their data in memory: Redis, Valkey and Memcached."""

import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rehearsal.network import accepts
from rehearsal.sandbox import start_helper
from rehearsal.services.base import ServiceError

START_SECONDS = 10
STOP_SECONDS = 10
# Programs by type; Redis speaks the protocol of Valkey.
PROGRAMS = {
    "memcached": ("memcached",),
    "redis": ("redis-server",),
    "valkey": ("valkey-server", "redis-server"),
}


def program(kind: str) -> str | None:
    """Return the path of a server; None if it is not installed."""
    return next(filter(None, map(shutil.which, PROGRAMS.get(kind, ()))), None)


@asynccontextmanager
async def running(server: str, directory: Path, port: int) -> AsyncIterator[None]:
    """Run a server on a port of 127.0.0.1, with its files in `directory`.

    Raises:
        ServiceError: the server does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if Path(server).name == "memcached":
        options = ["-l", "127.0.0.1", "-p", str(port), "-u", "nobody"]
    else:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    process = await start_helper(server, *options, log=directory / "log")
    try:
        if not await accepts(port, START_SECONDS, lambda: not process.has_ended):
            raise ServiceError(f"{server} does not start. Its log is {directory / 'log'}.")
        yield
    finally:
        await process.stop(signal.SIGTERM, STOP_SECONDS)
