"""Run the real server as a subprocess, and check its log, its connections and its exit."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import psutil

EXIT_SECONDS = 10.0  # the server must exit this soon after SIGTERM
START_SECONDS = 30.0  # generous, for busy machines

# Strong enough for the settings on Upsun.
SECRET_KEY = "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0"
# A database that does not exist, for tests that need none.
NO_DATABASE = "postgresql://nobody@127.0.0.1:9/none"
UPSUN = {
    "PLATFORM_APPLICATION_NAME": "app",
    "PLATFORM_ENVIRONMENT": "main-bvxea6i",
    "PLATFORM_ENVIRONMENT_TYPE": "production",
    "PLATFORM_TREE_ID": "1f3a",
}


class Server:
    """A server subprocess and its output.

    Args:
        command: a module and its arguments, for `python -m`.
        environment: additional environment variables.
    """

    def __init__(self, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.spawned = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONWARNINGS": "default",  # includes ResourceWarning
                "DATABASE_ENVIRONMENT": os.environ["DATABASE_ENVIRONMENT"],
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Its own process group, so that Ctrl-C in the terminal does not reach it.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = 0
        self.children: set[psutil.Process] = set()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log entries of an event."""
        return [event for event in self.log() if event.get("event") == name]

    def log(self) -> list[dict[str, Any]]:
        """Return all log entries. Each line must be JSON."""
        return [json.loads(line) for line in list(self.lines)]

    def problems(self) -> list[str]:
        """Return unexpected output: errors, tracebacks and lines that are not JSON."""
        return [
            line
            for line in list(self.lines)
            if "Traceback" in line
            or not line.startswith("{")
            or json.loads(line)["level"] in {"error", "critical"}
        ]

    def pids(self) -> list[int]:
        """Return the process ids of the serving processes."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.children.update(children)
        return [child.pid for child in children] or [self.process.pid]

    def cpu_seconds(self) -> float:
        """Return the CPU time of the serving processes, in user mode."""
        return sum(child.cpu_times().user for child in self.children)

    async def wait_for_event(self, name: str, *, times: int = 1) -> list[dict[str, Any]]:
        """Wait until an event has been logged `times` times, and return its log entries."""

        def found() -> bool:
            return len(self.events(name)) >= times or not self._reader.is_alive()

        await eventually(found, f"{times} x {name!r} in the log", lambda: self.output)
        events = self.events(name)
        assert len(events) >= times, f"exited without {name!r}:\n{self.output}"
        return events

    async def wait_until_serving(self, processes: int = 1) -> None:
        """Wait until all processes accept requests."""
        self.port = int((await self.wait_for_event("server starting"))[0]["port"])
        await self.wait_for_event("server ready", times=processes)
        self.pids()
        async with httpx.AsyncClient(base_url=self.url, timeout=START_SECONDS) as client:
            assert (await client.get("/livez")).status_code == 200

    async def wait_until_draining(self) -> None:
        """Wait until all processes have begun to shut down."""
        await self.wait_for_event("server stopping", times=len(self.events("server ready")))

    def send(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the server."""
        self.stopped = time.monotonic()
        self.process.send_signal(number)

    async def wait_for_exit(self, within: float = EXIT_SECONDS) -> int:
        """Wait until the server and all its processes have exited, and return the exit code."""

        def finished() -> bool:
            return self.process.poll() is not None

        await eventually(finished, "exit of the server", lambda: self.output, within)
        await eventually(
            lambda: not any(map(is_alive, self.children)),
            "exit of the server's processes",
            lambda: self.output,
            5.0,
        )
        # The pipe is closed when the last process that inherited it exits.
        await asyncio.to_thread(self._reader.join, 5.0)
        assert not self._reader.is_alive(), "a process of the server is still running"
        assert self.process.returncode is not None
        return self.process.returncode

    async def stop_cleanly(self, number: int = signal.SIGTERM) -> None:
        """Send a signal. The server must exit in time, with code 0 and without errors."""
        self.send(number)
        assert await self.wait_for_exit() == 0, self.output
        assert self.problems() == [], self.output

    def kill(self) -> None:
        """Kill all processes of the server."""
        if self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                self.pids()
            self.process.kill()
        for child in self.children:
            with suppress(psutil.NoSuchProcess):  # psutil detects reused process ids
                child.kill()
        self.process.wait()
        self._reader.join(5.0)
        if self.process.stdout is not None:
            self.process.stdout.close()


@asynccontextmanager
async def spawned(processes: int, *command: str, **variables: str) -> AsyncIterator[Server]:
    """Start a server, and kill it at the end if it is still running.

    Args:
        processes: the number of serving processes.
        command: a module and its arguments, for `python -m`.
        variables: additional environment variables.
    """
    defaults = {
        "HOST": "127.0.0.1",
        "PORT": "0",
        "WEB_CONCURRENCY": str(processes),
        "DATABASE_URL": NO_DATABASE,
        "SECRET_KEY": SECRET_KEY,
        "MAIL_URL": "console:",  # no mail server needed
    }
    server = Server(*command, environment={**defaults, **variables})
    try:
        yield server
    finally:
        await asyncio.to_thread(server.kill)


@asynccontextmanager
async def serving(processes: int, *command: str, **variables: str) -> AsyncIterator[Server]:
    """Start a server and wait until it accepts requests."""
    async with spawned(processes, *command, **variables) as server:
        await server.wait_until_serving(processes)
        yield server


class Connection:
    """A raw HTTP/1.1 connection, for tests that control every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, server: Server) -> "Connection":
        """Open a connection to a server."""
        return cls(*await asyncio.open_connection("127.0.0.1", server.port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def get(self, path: str, *headers: str) -> None:
        """Send a GET request."""
        lines = [f"GET {path} HTTP/1.1", "Host: example.com", *headers, "", ""]
        await self.send("\r\n".join(lines).encode())

    async def read_response(self) -> tuple[int, dict[str, str], bytes]:
        """Read a response: status code, headers and body. Fail if it is incomplete."""
        status, headers = await self.read_head()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            assert await self.reader.readexactly(2) == b"\r\n"
            return status, headers, body
        return status, headers, await self.reader.readexactly(int(headers["content-length"]))

    async def read_head(self) -> tuple[int, dict[str, str]]:
        """Read the status code and the headers of a response."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}

    async def wait_closed(self) -> bool:
        """Wait until the server closes the connection. Return False if it sends data before."""
        try:
            return await asyncio.wait_for(self.reader.read(), EXIT_SECONDS) == b""
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):  # already reset by the server
            await self.writer.wait_closed()


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process is running. Zombies are not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def eventually(
    condition: Callable[[], bool],
    what: str,
    context: Callable[[], str] = lambda: "",
    within: float = START_SECONDS,
) -> None:
    """Wait until a condition is true. Fail with `context` after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {within} s\n{context()}"
        await asyncio.sleep(0.01)


async def migrate(database_url: str) -> None:
    """Migrate a database like the deploy hook."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alembic", "upgrade", "head"),
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "DATABASE_ENVIRONMENT": os.environ["DATABASE_ENVIRONMENT"],
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
