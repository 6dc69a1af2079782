"""Load generator: send the same request, or some in turn, repeatedly on several connections.

  python -m benchmarks.load <options.json

Runs in a separate process and uses raw sockets, because it shares the machine with the server. Each
connection sends the next request when it has received the complete response to the previous one.
A response with another status or another body than the expected one is an error, and so is a lost
connection. Errors are counted, and the connection continues with the next request.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).parent.parent
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
RETRY_SECONDS = 0.1  # until the next attempt to connect


@dataclass(frozen=True)
class LoadOptions:
    """The request to send, and for how long."""

    port: int
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    connections: int = 32
    warm_up: float = 0.5
    """Seconds of load before the measurement starts."""
    seconds: float = 4.0
    timeout: float = 2.0
    """Seconds after which a response counts as timed out. It is awaited nevertheless."""
    body: str | None = ""
    """The expected response body; None if each response has another one."""
    status: int = 200
    """The expected status."""
    method: str = "GET"
    variants: Sequence[tuple[dict[str, str], str]] = (({}, ""),)
    """Further headers and the body of each request; they are sent in turn."""


@dataclass(frozen=True)
class Measured:
    """The result of a measurement; latencies in milliseconds."""

    requests: int
    """Responses without an error."""
    seconds: float
    p50: float
    p99: float
    longest: float
    """The maximum, including requests still waiting: a starved request is in no percentile."""
    cpu: float
    """CPU usage of the load generator, as a share of one core. Near 1, it is the bottleneck."""
    errors: int
    timeouts: int
    """Responses that took longer than the timeout, and requests that have waited longer."""
    first_error: str

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class NoResponseError(SystemExit):
    """There was no response without an error."""


async def measure(options: LoadOptions) -> Measured:
    """Run the load generator in another process.

    Raises:
        NoResponseError: there was no response without an error.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.load"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate(json.dumps(asdict(options)).encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise NoResponseError(f"The load generator failed for {options.path}; see the error above.")
    return Measured(**json.loads(output))


class Connection(asyncio.Protocol):
    """A connection that sends one request at a time."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._received = b""
        self._begun = 0.0
        # Bytes of the response and of its headers, once these are received.
        self._expected_bytes = self._header_bytes = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._send()

    @property
    def pending_since(self) -> float:
        """When the pending request was sent; 0 if there is none."""
        return self._begun

    def _send(self) -> None:
        self._received, self._expected_bytes = b"", 0
        if not self._begun:
            self._begun = time.perf_counter()
        self._transport.write(next(self._load.requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._expected_bytes:
            end = self._received.find(b"\r\n\r\n")
            length = LENGTH.search(self._received, 0, end + 2) if end > 0 else None
            if length is None:
                return
            self._header_bytes = end + 4
            self._expected_bytes = self._header_bytes + int(length[1])
        if len(self._received) < self._expected_bytes:
            return
        self._load.received(self._begun, self._received)
        self._begun = 0.0
        if not CLOSES.search(self._received, 0, self._header_bytes):
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        # Some servers close the connection after a response. Reconnecting is part of the latency.
        if self._load.is_over:
            return
        if self._begun:
            self._load.fail(f"connection lost: {error}")
        self._begun = time.perf_counter()
        self._load.connect(self)


class Load:
    """All connections, and their latencies."""

    def __init__(self, options: LoadOptions) -> None:
        self.requests = cycle([encode(options, *each) for each in options.variants])
        self._statuses = tuple(f"HTTP/1.{minor} {options.status} ".encode() for minor in (1, 0))
        self._body_end = b"" if options.body is None else b"\r\n\r\n" + options.body.encode()
        self._options = options
        self._taken: list[float] = []
        self._counts = False
        self.is_over = False
        self._errors = 0
        self._first_error = ""
        self._connections = [Connection(self) for _ in range(options.connections)]
        self._connecting: set[asyncio.Task[object]] = set()

    async def run(self) -> Measured:
        """Warm up, then measure."""
        for connection in self._connections:
            self.connect(connection)
        await asyncio.sleep(self._options.warm_up)
        begun, cpu = time.perf_counter(), time.process_time()
        self._counts = True
        await asyncio.sleep(self._options.seconds)
        seconds = time.perf_counter() - begun
        cpu = time.process_time() - cpu
        self.is_over = True
        now = time.perf_counter()
        waiting = [now - each.pending_since for each in self._connections if each.pending_since]
        if not self._taken:
            raise NoResponseError(
                f"{self._options.method} {self._options.path}: no response."
                f" {self._first_error}".rstrip()
            )
        return Measured(
            len(self._taken),
            round(seconds, 3),
            p50=quantile(self._taken, 0.5),
            p99=quantile(self._taken, 0.99),
            longest=quantile([*self._taken, *waiting], 1),
            cpu=round(cpu / seconds, 2),
            errors=self._errors,
            timeouts=sum(each > self._options.timeout for each in [*self._taken, *waiting]),
            first_error=self._first_error,
        )

    def connect(self, connection: Connection) -> None:
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(self._open(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _open(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        while not self.is_over:
            try:
                await loop.create_connection(lambda: connection, "127.0.0.1", self._options.port)
            except OSError as error:
                self.fail(f"cannot connect: {error}")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    def received(self, begun: float, response: bytes) -> None:
        if not response.startswith(self._statuses):
            self.fail(response[:300].decode(errors="replace"))
        elif not response.endswith(self._body_end):
            self.fail("unexpected response body")
        elif self._counts:
            self._taken.append(time.perf_counter() - begun)

    def fail(self, reason: str) -> None:
        """Count an error; those of the warm-up count as well."""
        self._errors += 1
        self._first_error = self._first_error or reason


def encode(options: LoadOptions, headers: dict[str, str], body: str) -> bytes:
    """Return the bytes of a request."""
    content = body.encode()
    headers = {
        "Host": f"127.0.0.1:{options.port}",
        "Accept": "*/*",
        **({"Content-Length": str(len(content))} if content else {}),
        **options.headers,
        **headers,
    }
    lines = [f"{options.method} {options.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def quantile(seconds: Sequence[float], share: float) -> float:
    """Return a quantile of the times, in milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2)


async def main() -> None:
    print(json.dumps(asdict(await Load(LoadOptions(**json.load(sys.stdin))).run())))


if __name__ == "__main__":
    asyncio.run(main())
