"""Runs the collector of this package for a test."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from quart_upsun.testing.servers import eventually


class Collector:
    """A collector process and what it has received."""

    def __init__(self, mode: str) -> None:
        self.received: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quart_upsun.tests.telemetry.collector", mode],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.received.append(json.loads(line))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        return f"http://publickey@127.0.0.1:{self.port}/42"

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [each for each in self.received if each["kind"] == "span"]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [each for each in self.received if each["kind"] == "metric"]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [each["event"] for each in self.received if each["kind"] == "event"]

    def requests(self) -> int:
        """Return the number of requests, also of those that are not answered."""
        return sum(each["kind"] == "request" for each in self.received)

    async def wait_for(self, condition: Callable[["Collector"], object], what: str) -> None:
        """Wait until a condition is true."""
        await eventually(lambda: bool(condition(self)), what, lambda: str(self.received))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5.0)
        assert self.process.stdout is not None
        self.process.stdout.close()


@asynccontextmanager
async def collecting(mode: str = "accepts") -> AsyncIterator[Collector]:
    """Run a collector; see `collector` for the modes."""
    collector = await asyncio.to_thread(Collector, mode)
    try:
        yield collector
    finally:
        await asyncio.to_thread(collector.stop)


def closed_port() -> int:
    """Return a port that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
