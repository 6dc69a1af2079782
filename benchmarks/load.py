"""The load of the benchmarks: connections that ask for one page again and again.

  python -m benchmarks.load <order.json

In a process of its own, on raw sockets, so that it costs little of the machine that it shares with
the server. Each connection sends its next request when the answer to the last one is complete. An
answer counts only if it is 200 and its body, byte by byte, the one that was expected: a server
cannot win by answering something else.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    port: int
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    connections: int = 32
    warm_up: float = 1.0
    """Seconds before the time that counts."""
    seconds: float = 4.0
    body: str = ""
    """What each answer must hold."""


@dataclass(frozen=True)
class Measured:
    """What came of it; times in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    longest: float
    """Of those that wait still, too: who is overtaken again and again is in no percentile."""
    cpu: float
    """Of the load's process, as a share of one core: near 1 it would be the load that is slow."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class WrongAnswerError(SystemExit):
    """An answer is not the expected one."""


async def measure(order: Order) -> Measured:
    """Give the load, in another process.

    Raises:
        WrongAnswerError: an answer was not the expected one.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.load"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate(json.dumps(asdict(order)).encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise WrongAnswerError(f"The load on {order.path} ended early.")
    return Measured(**json.loads(output))


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._received = b""
        self._begun = 0.0
        self._awaited = 0  # bytes of an answer, once its header is there
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._ask()

    @property
    def waits_since(self) -> float:
        """When it has asked for what is not answered yet; 0 if it has not."""
        return self._begun

    def _ask(self) -> None:
        self._received, self._awaited = b"", 0
        if not self._begun:
            self._begun = time.perf_counter()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._awaited:
            end = self._received.find(b"\r\n\r\n")
            length = LENGTH.search(self._received, 0, end + 2) if end > 0 else None
            if length is None:
                return
            self._awaited = end + 4 + int(length[1])
        if len(self._received) < self._awaited:
            return
        self._load.answered(self._begun, self._received)
        self._begun = 0.0
        if not CLOSES.search(self._received, 0, self._awaited - len(self._load.body)):
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        # Some servers close after each answer; to connect again is part of what their clients wait.
        if self._load.is_over:
            return
        if self._begun:
            self._load.wrong(f"The connection was lost: {error}")
        else:
            self._begun = time.perf_counter()
            self._load.connect(self)


class Load:
    """All clients."""

    def __init__(self, order: Order) -> None:
        self.body = order.body.encode()
        headers = {"Host": f"127.0.0.1:{order.port}", "Accept": "*/*", **order.headers}
        lines = [f"GET {order.path} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
        self.request = "\r\n".join([*lines, "", ""]).encode()
        self._order = order
        self._taken: list[float] = []
        self._counts = False
        self.is_over = False
        self._failed: asyncio.Future[None]
        self._connections = [Connection(self) for _ in range(order.connections)]
        self._connecting: set[asyncio.Task[object]] = set()

    async def run(self) -> Measured:
        """Warm up, and count for as long as was ordered."""
        self._failed = asyncio.get_running_loop().create_future()
        for connection in self._connections:
            self.connect(connection)
        await self._wait(self._order.warm_up)
        begun, cpu = time.perf_counter(), time.process_time()
        self._counts = True
        await self._wait(self._order.seconds)
        seconds = time.perf_counter() - begun
        cpu = time.process_time() - cpu
        self.is_over = True
        now = time.perf_counter()
        waiting = [now - each.waits_since for each in self._connections if each.waits_since]
        if not self._taken:
            raise WrongAnswerError("Nothing was answered.")
        return Measured(
            len(self._taken),
            round(seconds, 3),
            p50=quantile(self._taken, 0.5),
            p99=quantile(self._taken, 0.99),
            longest=quantile([*self._taken, *waiting], 1),
            cpu=round(cpu / seconds, 2),
        )

    def connect(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        coming = loop.create_connection(lambda: connection, "127.0.0.1", self._order.port)
        task: asyncio.Task[object] = loop.create_task(coming)
        self._connecting.add(task)
        task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[object]) -> None:
        self._connecting.discard(task)
        if not self.is_over and not task.cancelled() and (error := task.exception()) is not None:
            self.wrong(f"No connection: {error}")

    def answered(self, begun: float, answer: bytes) -> None:
        if not answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 ")):
            self.wrong(answer[:300].decode(errors="replace"))
        elif not answer.endswith(b"\r\n\r\n" + self.body):
            self.wrong("the body is not the expected one")
        elif self._counts:
            self._taken.append(time.perf_counter() - begun)

    def wrong(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(WrongAnswerError(f"GET {self._order.path}: {reason}"))

    async def _wait(self, seconds: float) -> None:
        await asyncio.wait([self._failed], timeout=seconds)
        if self._failed.done():
            self._failed.result()


def quantile(seconds: Sequence[float], share: float) -> float:
    """Return the time that so many did not exceed, in milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2)


async def main() -> None:
    print(json.dumps(asdict(await Load(Order(**json.load(sys.stdin))).run())))


if __name__ == "__main__":
    asyncio.run(main())
