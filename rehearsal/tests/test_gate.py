"""The gate: what passes, what waits, and what is left when it closes."""

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import CoroutineType

import pytest

from rehearsal import gate
from rehearsal.gate import Gate

SECONDS = 20.0
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def of_gates() -> list[str]:
    """Return the names of what runs in the gate's module."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks() if not task.done()]
    return [
        coroutine.__qualname__
        for coroutine in coroutines
        if isinstance(coroutine, CoroutineType) and coroutine.cr_code.co_filename == gate.__file__
    ]


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task of a gate outlives it; an open socket would be a warning, and so an error."""
    yield
    assert of_gates() == []
    gc.collect()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """Run a server; it ends with its connections."""
    tasks = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            # Cancelled, when the server ends.
            with suppress(ConnectionError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def saying(text: bytes) -> Handler:
    """Return a server that answers a request with this, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text)
        await writer.drain()

    return handle


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(SECONDS):
            yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(port: int, request: bytes = REQUEST) -> bytes:
    """Send a request, and return all of the answer."""
    async with connected(port) as (reader, writer):
        writer.write(request)
        return await reader.read()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def refusing_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def ports(door: Gate) -> list[int]:
    return [door.held_port, door.direct_port]


async def test_both_ports_lead_to_the_backend() -> None:
    async with serving(saying(b"one")) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        assert [await ask(port) for port in ports(door)] == [b"one", b"one"]
        assert (door.waiting, door.held_total, door.longest_hold) == (0, 0, 0.0)


async def test_it_listens_where_it_is_told() -> None:
    held, direct = refusing_port(), refusing_port()
    async with Gate(held, direct) as door:
        assert (door.held_port, door.direct_port) == (held, direct)
        # The gate closes first, and the system remembers that for a while.
        assert b" 502 " in await ask(held)
        assert b" 503 " in await ask(direct)
        with pytest.raises(OSError, match="in use"):
            async with Gate(0, direct):
                pass
    async with Gate(held, direct):  # at once again
        pass


async def test_new_connections_go_to_the_new_backend() -> None:
    async with serving(echo) as first, serving(saying(b"two")) as second, Gate(0, 0) as door:
        await door.send_to(first)
        async with connected(door.held_port) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            await door.send_to(second)
            assert await ask(door.held_port) == b"two"
            writer.write(b"still")
            assert await reader.readexactly(5) == b"still"


async def test_hold_and_release() -> None:
    async with (
        serving(saying(b"one")) as first,
        serving(saying(b"two")) as second,
        Gate(0, 0) as door,
    ):
        await door.send_to(first)
        door.hold()
        asked = [asyncio.create_task(ask(door.held_port)) for _ in range(20)]
        await eventually(lambda: door.waiting == 20)
        assert door.held_total == 20
        # The other port is not held, whatever happens to the backend.
        assert await ask(door.direct_port) == b"one"
        assert door.longest_hold > 0
        assert not any(task.done() for task in asked)
        await door.send_to(second)
        assert not any(task.done() for task in asked)
        before = door.longest_hold
        door.release()
        assert await asyncio.gather(*asked) == [b"two"] * 20
        assert door.waiting == 0
        assert door.longest_hold >= before
        longest = door.longest_hold
        assert await ask(door.held_port) == b"two"
        assert (door.held_total, door.longest_hold) == (20, longest)


async def test_what_waits_is_not_read() -> None:
    """So that the system's buffers fill, and the router keeps the rest."""
    async with serving(echo) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        door.hold()
        with socket.socket() as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", door.held_port))
            await eventually(lambda: door.waiting == 1)
            sent = 0
            with suppress(BlockingIOError):
                while sent < 64 * 1024 * 1024:
                    sent += client.send(bytes(65536))
            assert sent < 64 * 1024 * 1024
            door.release()
            received = 0
            async with asyncio.timeout(SECONDS):
                while received < sent:
                    data = await asyncio.get_running_loop().sock_recv(client, 65536)
                    assert data
                    received += len(data)


async def test_release_and_hold_again_lets_the_first_go() -> None:
    async with serving(saying(b"one")) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        door.hold()
        first = asyncio.create_task(ask(door.held_port))
        await eventually(lambda: door.waiting == 1)
        door.release()
        door.hold()
        assert await first == b"one"
        second = asyncio.create_task(ask(door.held_port))
        await eventually(lambda: door.waiting == 1)
        door.release()
        assert await second == b"one"
        assert door.held_total == 2


@pytest.mark.parametrize("backend", ["none", "refuses"])
@pytest.mark.parametrize("body", [0, 5_000_000])
async def test_without_a_backend(backend: str, body: int) -> None:
    async with Gate(0, 0) as door:
        if backend == "refuses":
            await door.send_to(refusing_port())
        request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % body + bytes(body)
        held = await ask(door.held_port, request)
        direct = await ask(door.direct_port, request)
    assert held.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert direct.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 1\r\n" in direct
    for answer in (held, direct):
        head, _, text = answer.partition(b"\r\n\r\n")
        assert b"\r\nContent-Length: %d\r\n" % len(text) in head
        assert b"\r\nConnection: close" in head
        assert text


async def test_a_held_connection_whose_backend_refuses() -> None:
    async with Gate(0, 0) as door:
        await door.send_to(refusing_port())
        door.hold()
        assert (await ask(door.direct_port)).startswith(b"HTTP/1.1 503 ")
        held = asyncio.create_task(ask(door.held_port))
        await eventually(lambda: door.waiting == 1)
        door.release()
        assert (await held).startswith(b"HTTP/1.1 502 ")


async def test_the_end_of_the_request_passes_on() -> None:
    """The backend answers after the client has said all."""

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))

    async with serving(count) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        async with connected(door.held_port) as (reader, writer):
            writer.write(bytes(3_000_000))
            writer.write_eof()
            assert await reader.read() == b"3000000"


async def test_the_end_of_the_answer_passes_on() -> None:
    """The client goes on after the backend has said all."""
    heard = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all")
        writer.write_eof()
        heard.set_result(await reader.read())

    async with serving(handle) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        async with connected(door.held_port) as (reader, writer):
            assert await reader.read() == b"all"
            writer.write(b"more")
            writer.write_eof()
            assert await heard == b"more"


async def test_a_slow_reader_slows_the_backend() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with serving(flood) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        async with connected(door.held_port) as (reader, _):
            before = -1
            while before < sent:  # until it stands still
                before = sent
                await asyncio.sleep(0.3)
            assert sent < 64 * 1024 * 1024
            received = 0
            while data := await reader.read(1024 * 1024):
                received += len(data)
            assert received == 64 * 1024 * 1024


def reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_reset_of_the_backend_is_no_end() -> None:
    """A truncated answer without a length must not look complete."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"half")
        await reader.readexactly(1)
        reset(writer)

    async with serving(handle) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        async with connected(door.held_port) as (reader, writer):
            writer.write(REQUEST)
            assert await reader.readexactly(4) == b"half"
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await eventually(lambda: set(of_gates()) == {"Gate._accept"})


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_the_backend_hears_that_the_client_left(how: str) -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        with suppress(ConnectionError):
            assert await reader.read() == b""
        left.set()

    async with serving(handle) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        async with connected(door.held_port) as (reader, writer):
            assert await reader.readexactly(1) == b"x"
            if how == "reset":
                reset(writer)
        async with asyncio.timeout(SECONDS):
            await left.wait()
        await eventually(lambda: set(of_gates()) == {"Gate._accept"})


async def test_an_answer_before_the_request_was_read() -> None:
    """As to one that is too large: the answer arrives all the same."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"too large")
        await writer.drain()
        writer.write_eof()
        await reader.readexactly(100_000)

    async with serving(handle) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        async with connected(door.direct_port) as (reader, writer):
            writer.write(REQUEST)
            assert await reader.readexactly(9) == b"too large"
            with suppress(ConnectionError):
                for _ in range(100):
                    writer.write(bytes(65536))
                    await writer.drain()
        await eventually(lambda: set(of_gates()) == {"Gate._accept"})


@pytest.mark.parametrize("what", ["spliced", "waiting", "refused"])
async def test_closing_ends_everything(what: str) -> None:
    async with serving(echo) as backend, Gate(0, 0) as door:
        if what != "refused":
            await door.send_to(backend)
        if what == "waiting":
            door.hold()
        async with connected(door.held_port) as (reader, writer):
            writer.write(b"x")
            if what == "spliced":
                assert await reader.readexactly(1) == b"x"
            elif what == "refused":
                assert b" 502 " in await reader.readuntil(b"\r\n")
            else:
                await eventually(lambda: door.waiting == 1)
            assert of_gates()
            await door.__aexit__(None, None, None)
            assert of_gates() == []
            with suppress(ConnectionResetError):
                rest = await reader.read()
                assert b"x" not in rest or what == "refused"
            assert door.waiting == 0
            with pytest.raises(ConnectionRefusedError):
                await ask(door.held_port)


async def test_many_at_once() -> None:
    async with serving(saying(b"answer")) as backend, Gate(0, 0) as door:
        await door.send_to(backend)
        door.hold()
        asked = [asyncio.create_task(ask(ports(door)[n % 2])) for n in range(300)]
        await eventually(lambda: door.waiting == 150)
        door.release()
        assert set(await asyncio.gather(*asked)) == {b"answer"}
        await eventually(lambda: set(of_gates()) == {"Gate._accept"})
