"""The gate: forwarding, holding, refusing, and cleanup."""

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import CoroutineType

import pytest

from rehearsal import gate
from rehearsal.gate import Gate

SECONDS = 20.0
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def running_coroutines() -> list[str]:
    """Return the names of the gate's running coroutines."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks() if not task.done()]
    return [
        coroutine.__qualname__
        for coroutine in coroutines
        if isinstance(coroutine, CoroutineType) and coroutine.cr_code.co_filename == gate.__file__
    ]


@pytest.fixture(autouse=True)
async def no_leftover_tasks() -> AsyncIterator[None]:
    """Check that no task outlives its gate; an open socket causes a warning, which is an error."""
    yield
    assert running_coroutines() == []
    gc.collect()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """Run a server, and close its connections at the end."""
    tasks = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            # Canceled at the end of the server.
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


def responding(text: bytes) -> Handler:
    """Return a handler that sends `text` after a request and closes the connection."""

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


async def fetch(port: int, request: bytes = REQUEST) -> bytes:
    """Send a request; return the whole response."""
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


def ports(proxy: Gate) -> list[int]:
    return [proxy.held_port, proxy.direct_port]


async def test_both_ports_forward_to_the_backend() -> None:
    async with serving(responding(b"one")) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        assert [await fetch(port) for port in ports(proxy)] == [b"one", b"one"]
        assert (proxy.waiting, proxy.held_total, proxy.longest_hold) == (0, 0, 0.0)


async def test_listens_on_given_ports() -> None:
    held, direct = refusing_port(), refusing_port()
    async with Gate(held, direct) as proxy:
        assert (proxy.held_port, proxy.direct_port) == (held, direct)
        # The gate closes the connection first, so the port stays in TIME_WAIT.
        assert b" 502 " in await fetch(held)
        assert b" 503 " in await fetch(direct)
        with pytest.raises(OSError, match="in use"):
            async with Gate(0, direct):
                pass
    async with Gate(held, direct):  # can be reused immediately
        pass


async def test_new_connections_use_the_new_backend() -> None:
    async with serving(echo) as first, serving(responding(b"two")) as second, Gate(0, 0) as proxy:
        await proxy.send_to(first)
        async with connected(proxy.held_port) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            await proxy.send_to(second)
            assert await fetch(proxy.held_port) == b"two"
            writer.write(b"still")
            assert await reader.readexactly(5) == b"still"


async def test_hold_and_release() -> None:
    async with (
        serving(responding(b"one")) as first,
        serving(responding(b"two")) as second,
        Gate(0, 0) as proxy,
    ):
        await proxy.send_to(first)
        proxy.hold()
        requests = [asyncio.create_task(fetch(proxy.held_port)) for _ in range(20)]
        await eventually(lambda: proxy.waiting == 20)
        assert proxy.held_total == 20
        # The direct port is never held.
        assert await fetch(proxy.direct_port) == b"one"
        assert proxy.longest_hold > 0
        assert not any(task.done() for task in requests)
        await proxy.send_to(second)
        assert not any(task.done() for task in requests)
        before = proxy.longest_hold
        proxy.release()
        assert await asyncio.gather(*requests) == [b"two"] * 20
        assert proxy.waiting == 0
        assert proxy.longest_hold >= before
        longest = proxy.longest_hold
        assert await fetch(proxy.held_port) == b"two"
        assert (proxy.held_total, proxy.longest_hold) == (20, longest)


async def test_held_connection_is_not_read() -> None:
    """The socket buffers fill up, and the router keeps the rest of the request."""
    async with serving(echo) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        proxy.hold()
        with socket.socket() as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", proxy.held_port))
            await eventually(lambda: proxy.waiting == 1)
            sent = 0
            with suppress(BlockingIOError):
                while sent < 64 * 1024 * 1024:
                    sent += client.send(bytes(65536))
            assert sent < 64 * 1024 * 1024
            proxy.release()
            received = 0
            async with asyncio.timeout(SECONDS):
                while received < sent:
                    data = await asyncio.get_running_loop().sock_recv(client, 65536)
                    assert data
                    received += len(data)


async def test_hold_after_release_affects_new_connections_only() -> None:
    async with serving(responding(b"one")) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        proxy.hold()
        first = asyncio.create_task(fetch(proxy.held_port))
        await eventually(lambda: proxy.waiting == 1)
        proxy.release()
        proxy.hold()
        assert await first == b"one"
        second = asyncio.create_task(fetch(proxy.held_port))
        await eventually(lambda: proxy.waiting == 1)
        proxy.release()
        assert await second == b"one"
        assert proxy.held_total == 2


@pytest.mark.parametrize("backend", ["none", "refuses"])
@pytest.mark.parametrize("body", [0, 5_000_000])
async def test_refuses_without_a_backend(backend: str, body: int) -> None:
    async with Gate(0, 0) as proxy:
        if backend == "refuses":
            await proxy.send_to(refusing_port())
        request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % body + bytes(body)
        held = await fetch(proxy.held_port, request)
        direct = await fetch(proxy.direct_port, request)
    assert held.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert direct.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 1\r\n" in direct
    for response in (held, direct):
        head, _, text = response.partition(b"\r\n\r\n")
        assert b"\r\nContent-Length: %d\r\n" % len(text) in head
        assert b"\r\nConnection: close" in head
        assert text


async def test_instance_that_refuses_connections_gets_none() -> None:
    async with serving(responding(b"one")) as backend, Gate(0, 0) as proxy:
        lost = refusing_port()
        await proxy.send_to(lost, backend)
        for port in ports(proxy):
            assert [await fetch(port) for _ in range(20)] == [b"one"] * 20
        assert (proxy.passed[backend], proxy.passed[lost]) == (40, 0)
        await eventually(lambda: not proxy.open.total())


async def test_connections_are_spread_and_counted() -> None:
    async with serving(echo) as first, serving(echo) as second, Gate(0, 0) as proxy:
        await proxy.send_to(first, second)
        async with AsyncExitStack() as stack:
            for _ in range(40):
                reader, writer = await stack.enter_async_context(connected(proxy.held_port))
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            assert proxy.open[first] + proxy.open[second] == 40
            assert proxy.open[first] > 0
            assert proxy.open[second] > 0
            assert proxy.passed == proxy.open
        await eventually(lambda: not proxy.open.total())
        assert proxy.passed.total() == 40


async def test_held_connection_with_refusing_backend() -> None:
    async with Gate(0, 0) as proxy:
        await proxy.send_to(refusing_port())
        proxy.hold()
        assert (await fetch(proxy.direct_port)).startswith(b"HTTP/1.1 503 ")
        held = asyncio.create_task(fetch(proxy.held_port))
        await eventually(lambda: proxy.waiting == 1)
        proxy.release()
        assert (await held).startswith(b"HTTP/1.1 502 ")


async def test_end_of_request_is_forwarded() -> None:
    """The backend responds after the client has closed its side."""

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))

    async with serving(count) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        async with connected(proxy.held_port) as (reader, writer):
            writer.write(bytes(3_000_000))
            writer.write_eof()
            assert await reader.read() == b"3000000"


async def test_end_of_response_is_forwarded() -> None:
    """The client may send more after the backend has closed its side."""
    received = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all")
        writer.write_eof()
        received.set_result(await reader.read())

    async with serving(handle) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        async with connected(proxy.held_port) as (reader, writer):
            assert await reader.read() == b"all"
            writer.write(b"more")
            writer.write_eof()
            assert await received == b"more"


async def test_slow_client_slows_down_the_backend() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with serving(flood) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        async with connected(proxy.held_port) as (reader, _):
            before = -1
            while before < sent:  # until the backend is blocked
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


async def test_backend_reset_is_forwarded_as_a_reset() -> None:
    """A truncated response without a length must not look complete."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"half")
        await reader.readexactly(1)
        reset(writer)

    async with serving(handle) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        async with connected(proxy.held_port) as (reader, writer):
            writer.write(REQUEST)
            assert await reader.readexactly(4) == b"half"
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await eventually(lambda: set(running_coroutines()) == {"Gate._accept"})


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_backend_notices_a_closed_connection(how: str) -> None:
    closed = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        with suppress(ConnectionError):
            assert await reader.read() == b""
        closed.set()

    async with serving(handle) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        async with connected(proxy.held_port) as (reader, writer):
            assert await reader.readexactly(1) == b"x"
            if how == "reset":
                reset(writer)
        async with asyncio.timeout(SECONDS):
            await closed.wait()
        await eventually(lambda: set(running_coroutines()) == {"Gate._accept"})


async def test_response_before_the_request_was_read() -> None:
    """The client receives the response, for example that the request is too large."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"too large")
        await writer.drain()
        writer.write_eof()
        await reader.readexactly(100_000)

    async with serving(handle) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        async with connected(proxy.direct_port) as (reader, writer):
            writer.write(REQUEST)
            assert await reader.readexactly(9) == b"too large"
            with suppress(ConnectionError):
                for _ in range(100):
                    writer.write(bytes(65536))
                    await writer.drain()
        await eventually(lambda: set(running_coroutines()) == {"Gate._accept"})


@pytest.mark.parametrize("what", ["spliced", "waiting", "refused"])
async def test_closing_ends_all_connections(what: str) -> None:
    async with serving(echo) as backend, Gate(0, 0) as proxy:
        if what != "refused":
            await proxy.send_to(backend)
        if what == "waiting":
            proxy.hold()
        async with connected(proxy.held_port) as (reader, writer):
            writer.write(b"x")
            if what == "spliced":
                assert await reader.readexactly(1) == b"x"
            elif what == "refused":
                assert b" 502 " in await reader.readuntil(b"\r\n")
            else:
                await eventually(lambda: proxy.waiting == 1)
            assert running_coroutines()
            await proxy.__aexit__(None, None, None)
            assert running_coroutines() == []
            with suppress(ConnectionResetError):
                rest = await reader.read()
                assert b"x" not in rest or what == "refused"
            assert proxy.waiting == 0
            with pytest.raises(ConnectionRefusedError):
                await fetch(proxy.held_port)


async def test_many_concurrent_connections() -> None:
    async with serving(responding(b"answer")) as backend, Gate(0, 0) as proxy:
        await proxy.send_to(backend)
        proxy.hold()
        requests = [asyncio.create_task(fetch(ports(proxy)[n % 2])) for n in range(300)]
        await eventually(lambda: proxy.waiting == 150)
        proxy.release()
        assert set(await asyncio.gather(*requests)) == {b"answer"}
        await eventually(lambda: set(running_coroutines()) == {"Gate._accept"})
