"""A TCP proxy between router and container that holds connections during a deploy.

It does not inspect the data. The router decides which requests are held: it sends those to the
first port, and all others to the second.
"""

import asyncio
import errno
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK = 64 * 1024
CONNECT_SECONDS = 30.0
LINGER_SECONDS = 5.0
RETRY_AFTER_SECONDS = 1

NO_BACKEND = (
    "HTTP/1.1 {status}\r\n"
    "Content-Type: text/plain; charset=utf-8\r\n"
    "Content-Length: {length}\r\n"
    "Cache-Control: no-store\r\n"
    "{more}"
    "Connection: close\r\n"
    "\r\n"
    "{text}"
)


def _answer(status: str, text: str, more: str = "") -> bytes:
    return NO_BACKEND.format(status=status, length=len(text), more=more, text=text).encode("ascii")


BAD_GATEWAY = _answer("502 Bad Gateway", "The application does not accept connections.\n")
UNAVAILABLE = _answer(
    "503 Service Unavailable",
    "The application is being deployed.\n",
    f"Retry-After: {RETRY_AFTER_SECONDS}\r\n",
)


class Gate:
    """Forward connections to a port on 127.0.0.1, or hold them.

    Use it as an asynchronous context manager. `hold` affects connections to the held port only.
    A port of 0 means any free port.
    """

    def __init__(self, held_port: int, direct_port: int) -> None:
        self.held_port = held_port
        self.direct_port = direct_port
        self.waiting = 0
        """The number of connections that are held now."""
        self.held_total = 0
        """The number of connections that have been held so far."""
        self.passed: Counter[int] = Counter()
        """The number of connections that have been forwarded so far, by port."""
        self.open: Counter[int] = Counter()
        """The number of connections that are forwarded now, by port."""
        self._longest = 0.0
        self._since: dict[int, float] = {}  # file descriptor of a held connection -> start time
        self._ports: tuple[int, ...] = ()
        self._open = asyncio.Event()
        self._open.set()
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            held = self._listen(self.held_port)
            direct = self._listen(self.direct_port)
        except OSError:
            self._stop_listening()
            raise
        self.held_port = held.getsockname()[1]
        self.direct_port = direct.getsockname()[1]
        self._start(self._accept(held, hold=True))
        self._start(self._accept(direct, hold=False))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # In a loop, because a connection may have been accepted in the meantime.
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._stop_listening()

    @property
    def longest_hold(self) -> float:
        """Return the longest time that a connection has been held so far, in seconds."""
        now = time.monotonic()
        return max([self._longest, *(now - begun for begun in self._since.values())])

    def listen_on(self, address: str, port: int) -> int:
        """Accept connections on another address, without holding them; return the port.

        Raises:
            OSError: the address is in use, or this user may not listen on the port.
        """
        listener = self._listen(port, address)
        self._start(self._accept(listener, hold=False))
        return int(listener.getsockname()[1])

    async def send_to(self, *ports: int) -> None:
        """Forward new connections, and held ones after their release, to ports on 127.0.0.1.

        Each connection goes to one of the ports, at random, or to another one if nothing accepts
        connections there. Open connections are not affected. Without ports, connections are
        refused.
        """
        self._ports = ports

    def hold(self) -> None:
        """Hold new connections to the held port, without reading from them."""
        self._open.clear()

    def release(self) -> None:
        """Forward all held connections to the current port."""
        self._open.set()

    def _listen(self, port: int, address: str = "127.0.0.1") -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listeners.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1024)
        listener.setblocking(False)
        return listener

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket, *, hold: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    await asyncio.sleep(0.1)  # retry later; the connection stays in the backlog
                continue
            client.setblocking(False)
            self._start(self._serve(client, hold=hold))

    async def _serve(self, client: socket.socket, *, hold: bool) -> None:
        """Handle one connection."""
        with client, suppress(OSError):
            if hold and not self._open.is_set():
                await self._wait(client.fileno())
            # The platform's router picks one of the available instances at random. How it finds out
            # that one is not available is not documented.
            for port in random.sample(self._ports, len(self._ports)):
                if await self._pass_on(client, port):
                    return
            await _refuse(client, BAD_GATEWAY if hold else UNAVAILABLE)

    async def _pass_on(self, client: socket.socket, port: int) -> bool:
        """Forward a connection to the backend; return False if the backend does not accept it."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as backend:
            backend.setblocking(False)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await asyncio.get_running_loop().sock_connect(backend, ("127.0.0.1", port))
            except OSError:  # includes TimeoutError
                return False
            self.passed[port] += 1
            self.open[port] += 1
            try:
                await _splice(client, backend)
            finally:
                self.open[port] -= 1
            return True

    async def _wait(self, number: int) -> None:
        begun = time.monotonic()
        self.held_total += 1
        self.waiting += 1
        self._since[number] = begun
        try:
            await self._open.wait()
        finally:
            del self._since[number]
            self.waiting -= 1
            self._longest = max(self._longest, time.monotonic() - begun)


async def _splice(client: socket.socket, backend: socket.socket) -> None:
    """Copy data in both directions until both sides have closed; a reset ends it at once."""
    for each in (client, backend):
        # Send small messages, such as those of an event stream, without delay.
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    loop = asyncio.get_running_loop()
    pumps = {
        loop.create_task(_pump(client, backend)),
        loop.create_task(_pump(backend, client)),
    }
    try:
        done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        if any(pump.exception() for pump in done):
            # Forward a reset as a reset, so that a truncated response does not look complete.
            for each in (client, backend):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy data from `source` to `target`, and then close that direction.

    Raises:
        OSError: reading from `source` failed. If writing to `target` fails, only this direction
            ends: the target may have answered without reading the whole request.
    """
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK):
        try:
            await loop.sock_sendall(target, data)
        except OSError:
            return
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


async def _refuse(client: socket.socket, answer: bytes) -> None:
    """Send a response without a backend."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, answer)
    client.shutdown(socket.SHUT_WR)
    # Read the request: closing the socket with unread data would reset the connection, and the
    # client would not receive the response.
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while await loop.sock_recv(client, CHUNK):
                pass
