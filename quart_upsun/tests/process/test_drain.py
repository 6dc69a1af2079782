"""Graceful shutdown: requests in flight finish, hanging ones are canceled, the exit code is 0."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import psutil
import pytest

from quart_upsun.server.serve import CANCEL_SECONDS
from quart_upsun.testing.servers import EXIT_SECONDS, Connection, Server, eventually, spawned
from quart_upsun.tests.process.application import NAME, serving

PROCESSES = pytest.mark.parametrize("processes", [1, 2])


@asynccontextmanager
async def connected(server: Server, count: int = 1) -> AsyncIterator[list[Connection]]:
    connections = [await Connection.to(server) for _ in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            await connection.close()


@PROCESSES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_server_exits_at_once(processes: int, number: int) -> None:
    async with serving(processes) as server:
        await server.stop_cleanly(number)
        assert time.monotonic() - server.stopped < CANCEL_SECONDS
        assert len(server.events("after serving")) == processes
        assert len(server.events("server stopped")) == processes


@pytest.mark.parametrize(
    ("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGINT)]
)
async def test_shutdown_finishes_requests_in_flight(processes: int, number: int) -> None:
    """Idle, half-sent and streaming connections must not delay the shutdown."""
    async with (
        serving(processes) as server,
        connected(server, 20) as waiting,
        connected(server, 3) as uploading,
        connected(server, 300) as idle,
        connected(server) as (streaming,),
        connected(server) as (half_sent,),
        connected(server) as (unused,),
    ):
        for connection in idle:
            await connection.get("/livez")
            assert (await connection.read_response())[0] == 200
        for connection in waiting:
            await connection.get("/slow?seconds=4")
        await server.wait_for_event("sleeping", times=len(waiting))
        for connection in uploading:
            await connection.send(
                b"POST /body HTTP/1.1\r\nHost: example.com\r\nContent-Length: 10\r\n\r\n12345"
            )
        await server.wait_for_event("reading", times=len(uploading))
        await half_sent.send(b"GET /livez HTTP/1.1\r\nHost: exam")
        await streaming.get("/polite")
        assert (await streaming.read_head())[0] == 200
        # Once a later request is answered, the server has received the earlier ones.
        await idle[0].get("/livez")
        await idle[0].read_response()

        server.send(number)
        await server.wait_until_draining()
        assert await half_sent.wait_closed()
        assert await unused.wait_closed()
        assert all([await connection.wait_closed() for connection in idle])
        rest = await asyncio.wait_for(streaming.reader.read(), EXIT_SECONDS)
        assert rest.endswith(b"\r\nlast\n\r\n0\r\n\r\n")
        for connection in uploading:
            await connection.send(b"67890")
        for connection in uploading:
            status, headers, body = await connection.read_response()
            assert (status, body) == (200, b"10")
            assert headers["connection"] == "close"
        for connection in waiting:
            status, headers, body = await connection.read_response()
            assert (status, body) == (200, b"done")
            assert headers["connection"] == "close"
        assert await server.wait_for_exit() == 0
        assert server.events("requests cancelled") == []
        assert server.problems() == []
        assert len(server.events("after serving")) == processes


@PROCESSES
async def test_readyz_fails_before_the_socket_closes(processes: int) -> None:
    """New connections still get 503 before they are refused."""
    answers: list[tuple[str, str | None]] = []

    async def poll_until_refused(server: Server) -> None:
        while True:
            try:
                connection = await Connection.to(server)
            except ConnectionError:
                return
            try:
                await connection.get("/readyz")
                status, headers, body = await connection.read_response()
            except (ConnectionError, asyncio.IncompleteReadError):
                return  # reset while the socket was closed
            finally:
                await connection.close()
            assert status == 503
            answers.append((json.loads(body)["reason"], headers.get("connection")))

    async with serving(processes) as server, asyncio.TaskGroup() as group:
        group.create_task(poll_until_refused(server))
        await eventually(lambda: bool(answers), "answers")
        await server.stop_cleanly()
    assert answers[0] == ("database", None)
    assert answers[-1] == ("draining", "close")


@PROCESSES
async def test_shutdown_closes_the_connection_pool(processes: int, database_url: str) -> None:
    async with serving(processes, DATABASE_URL=database_url) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            for _ in range(2):  # the first request opens the gate, which empties the pool
                await asyncio.gather(*(client.get("/rows/") for _ in range(10)))
        await server.stop_cleanly()
        assert [event["pooled"] for event in server.events("after serving")] == [0] * processes


Hang = Callable[[Server, Connection], Awaitable[None]]


async def endless_stream(server: Server, connection: Connection) -> None:
    await connection.get("/stubborn")
    assert (await connection.read_head())[0] == 200


async def never_reads(server: Server, connection: Connection) -> None:
    await connection.get("/flood")
    assert (await connection.read_head())[0] == 200


async def sends_half_a_body(server: Server, connection: Connection) -> None:
    await connection.send(
        b"POST /body HTTP/1.1\r\nHost: example.com\r\nContent-Length: 10\r\n\r\n12345"
    )
    await server.wait_for_event("reading")


async def blocks_the_loop(server: Server, connection: Connection) -> None:
    await connection.get("/block")
    await server.wait_for_event("blocking")


async def blocks_a_thread(server: Server, connection: Connection) -> None:
    await connection.get("/thread")
    await server.wait_for_event("blocking a thread")


@PROCESSES
async def test_hanging_requests_are_cancelled(processes: int) -> None:
    """The servers run in parallel, because each case takes the whole time limit."""

    async def ends_in_time(*hangs: Hang) -> Server:
        async with serving(processes) as server, connected(server, len(hangs)) as connections:
            for hang, connection in zip(hangs, connections, strict=True):
                await hang(server, connection)
            server.send()
            # The supervisor kills a process shortly before the limit.
            assert await server.wait_for_exit(EXIT_SECONDS + 5) == 0, f"{hangs}\n{server.output}"
            assert "Traceback" not in server.output
            return server

    graceful, *_ = await asyncio.gather(
        ends_in_time(endless_stream, sends_half_a_body),
        ends_in_time(never_reads),
        ends_in_time(blocks_the_loop),
        ends_in_time(blocks_a_thread),
    )
    # If the event loop is not blocked, the rest of the shutdown runs as usual.
    assert len(graceful.events("after serving")) == processes
    assert sum(event["count"] for event in graceful.events("requests cancelled")) == 2


@PROCESSES
async def test_a_second_signal_has_no_effect(processes: int) -> None:
    async with serving(processes) as server, connected(server) as (connection,):
        await sends_half_a_body(server, connection)
        server.send()
        await server.wait_until_draining()
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        await connection.send(b"67890")
        status, _, _ = await connection.read_response()
        assert status == 200
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait_for_exit() == 0
        assert server.problems() == []


@PROCESSES
async def test_a_signal_during_startup_exits(processes: int) -> None:
    """At any time: while modules are imported, and at each line that the server logs."""

    async def stop_after(seconds: float) -> None:
        async with spawned(processes, NAME) as server:
            await asyncio.sleep(seconds)
            await check(server, signal.SIGTERM)

    async def stop_at(line: str, *behaviour: str, number: int = signal.SIGTERM) -> None:
        async with spawned(processes, NAME, *behaviour) as server:
            await server.wait_for_event(line)
            await check(server, number)

    async def check(server: Server, number: int) -> None:
        server.send(number)
        # The signal kills the process while the server has no handler yet.
        assert await server.wait_for_exit() in {0, -number}, server.output
        assert server.problems() == []

    await asyncio.gather(
        *(stop_after(seconds) for seconds in (0, 0.2, 0.4)),
        *(stop_at("server starting", number=number) for number in (signal.SIGTERM, signal.SIGINT)),
        stop_at("server ready"),
        stop_at("hanging", "start-hangs"),
    )


async def test_a_process_that_ignores_sigterm_is_killed() -> None:
    """Only then the exit code is 1, because requests may have been lost."""
    async with serving(2) as server:
        first, _ = server.pids()
        psutil.Process(first).suspend()
        server.send()
        assert await server.wait_for_exit(EXIT_SECONDS + 5) == 1
        assert len(server.events("server processes killed")) == 1
        assert "Traceback" not in server.output


async def test_a_slow_client_gets_the_whole_response() -> None:
    """The client reads long after the server has written the response to the socket."""
    async with serving(1) as server, connected(server) as (connection,):
        await connection.get("/flood")
        assert (await connection.read_head())[0] == 200
        server.send()
        await server.wait_until_draining()
        received = 0
        while piece := await connection.reader.read(1 << 20):
            received += len(piece)
            tail = piece[-5:]
            await asyncio.sleep(0.001)
        assert received > 1000 * 65536
        assert tail == b"0\r\n\r\n"
        assert await server.wait_for_exit() == 0
