"""SIGTERM: what is in flight is answered, what cannot end is cut off, and the exit code is 0."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import psutil
import pytest

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
async def test_an_idle_server_ends_at_once(processes: int, number: int) -> None:
    async with serving(processes) as server:
        await server.stops(number)
        assert time.monotonic() - server.stopped < 2
        assert len(server.events("after serving")) == processes
        assert len(server.events("server stopped")) == processes


@pytest.mark.parametrize(
    ("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGINT)]
)
async def test_what_is_in_flight_is_answered(processes: int, number: int) -> None:
    """Beside clients that would keep a careless server from ending: they must not matter."""
    async with (
        serving(processes) as server,
        connected(server, 20) as waiting,
        connected(server, 3) as uploading,
        connected(server, 300) as idle,
        connected(server) as (streaming,),
        connected(server) as (in_the_head,),
        connected(server) as (unused,),
    ):
        for connection in idle:
            await connection.get("/livez")
            assert (await connection.answer())[0] == 200
        for connection in waiting:
            await connection.get("/slow?seconds=2")
        for connection in uploading:
            await connection.send(
                b"POST /body HTTP/1.1\r\nHost: example.com\r\nContent-Length: 10\r\n\r\n12345"
            )
        await server.says("reading", times=len(uploading))
        await in_the_head.send(b"GET /livez HTTP/1.1\r\nHost: exam")
        await streaming.get("/polite")
        assert (await streaming.head())[0] == 200
        # The answer to a later request: those before it have been seen as well.
        await idle[0].get("/livez")
        await idle[0].answer()

        server.send(number)
        await server.is_draining()
        assert await in_the_head.is_closed()
        assert await unused.is_closed()
        assert all([await connection.is_closed() for connection in idle])
        rest = await asyncio.wait_for(streaming.reader.read(), EXIT_SECONDS)
        assert rest.endswith(b"\r\nlast\n\r\n0\r\n\r\n")
        for connection in uploading:
            await connection.send(b"67890")
        for connection in uploading:
            status, headers, body = await connection.answer()
            assert (status, body) == (200, b"10")
            assert headers["connection"] == "close"
        for connection in waiting:
            status, headers, body = await connection.answer()
            assert (status, body) == (200, b"done")
            assert headers["connection"] == "close"
        assert await server.ended() == 0
        assert time.monotonic() - server.stopped < 5
        assert server.problems() == []
        assert len(server.events("after serving")) == processes


@PROCESSES
async def test_readiness_falls_before_the_door_closes(processes: int) -> None:
    """Whoever asks on a new connection still hears that it should go elsewhere."""
    answers: list[tuple[str, str | None]] = []

    async def ask_until_refused(server: Server) -> None:
        while True:
            try:
                connection = await Connection.to(server)
                await connection.get("/readyz")
                status, headers, body = await connection.answer()
            except (ConnectionError, asyncio.IncompleteReadError):
                # Refused, or closed in the very moment when the socket ended.
                return
            assert status == 503
            answers.append((json.loads(body)["reason"], headers.get("connection")))
            await connection.close()

    async with serving(processes) as server, asyncio.TaskGroup() as group:
        group.create_task(ask_until_refused(server))
        await eventually(lambda: bool(answers), "answers")
        await server.stops()
    assert answers[0] == ("database", None)
    assert answers[-1] == ("draining", "close")


@PROCESSES
async def test_the_pool_is_closed(processes: int, database_url: str) -> None:
    async with serving(processes, DATABASE_URL=database_url) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            for _ in range(2):  # the first to come opens the gate, which empties the pool
                await asyncio.gather(*(client.get("/rows/") for _ in range(10)))
        await server.stops()
        assert [event["pooled"] for event in server.events("after serving")] == [0] * processes


Hang = Callable[[Server, Connection], Awaitable[None]]


async def stubborn_stream(server: Server, connection: Connection) -> None:
    await connection.get("/stubborn")
    assert (await connection.head())[0] == 200


async def reads_nothing(server: Server, connection: Connection) -> None:
    await connection.get("/flood")
    assert (await connection.head())[0] == 200


async def sends_no_body(server: Server, connection: Connection) -> None:
    await connection.send(
        b"POST /body HTTP/1.1\r\nHost: example.com\r\nContent-Length: 10\r\n\r\n12345"
    )
    await server.says("reading")


async def blocks_the_loop(server: Server, connection: Connection) -> None:
    await connection.get("/block")
    await server.says("blocking")


async def blocks_a_thread(server: Server, connection: Connection) -> None:
    await connection.get("/thread")
    await server.says("blocking a thread")


@PROCESSES
async def test_what_does_not_end_is_cut_off(processes: int) -> None:
    """All side by side, each with a server of its own: every one takes the whole time."""

    async def ends_in_time(*hangs: Hang) -> Server:
        async with serving(processes) as server, connected(server, len(hangs)) as connections:
            for hang, connection in zip(hangs, connections, strict=True):
                await hang(server, connection)
            server.send()
            assert await server.ended() == 0, f"{hangs}\n{server.output}"
            assert "Traceback" not in server.output
            return server

    orderly, *_ = await asyncio.gather(
        ends_in_time(stubborn_stream, sends_no_body),
        ends_in_time(reads_nothing),
        ends_in_time(blocks_the_loop),
        ends_in_time(blocks_a_thread),
    )
    # Where the event loop turns and the client reads, the rest of the process ends as always.
    assert len(orderly.events("after serving")) == processes
    assert sum(event["count"] for event in orderly.events("requests cancelled")) == 2


@PROCESSES
async def test_a_second_signal_changes_nothing(processes: int) -> None:
    async with serving(processes) as server, connected(server) as (connection,):
        await connection.get("/slow?seconds=1")
        await asyncio.sleep(0)
        server.send()
        await server.is_draining()
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        status, _, _ = await connection.answer()
        assert status == 200
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert server.problems() == []


@PROCESSES
async def test_a_signal_during_the_start(processes: int) -> None:
    """At any moment of it: while modules are imported, and at every line the server logs."""

    async def stop_after(seconds: float) -> None:
        async with spawned(processes, NAME) as server:
            await asyncio.sleep(seconds)
            await check(server, signal.SIGTERM)

    async def stop_at(line: str, *behaviour: str, number: int = signal.SIGTERM) -> None:
        async with spawned(processes, NAME, *behaviour) as server:
            await server.says(line)
            await check(server, number)

    async def check(server: Server, number: int) -> None:
        server.send(number)
        # By the signal itself while Python is not yet in our hands.
        assert await server.ended() in {0, -number}, server.output
        assert time.monotonic() - server.stopped < 5
        assert server.problems() == []

    await asyncio.gather(
        *(stop_after(seconds) for seconds in (0, 0.2, 0.4)),
        *(stop_at("server starting", number=number) for number in (signal.SIGTERM, signal.SIGINT)),
        stop_at("server ready"),
        stop_at("hanging", "start-hangs"),
    )


async def test_a_process_that_does_not_even_hear_is_killed() -> None:
    """Only then the exit code is 1: an answer was lost, or something else is wrong."""
    async with serving(2) as server:
        first, _ = server.pids()
        psutil.Process(first).suspend()
        server.send()
        assert await server.ended(EXIT_SECONDS + 2) == 1
        assert len(server.events("server processes killed")) == 1
        assert "Traceback" not in server.output


async def test_a_slow_reader_gets_all_of_it() -> None:
    """The answer has been handed to the socket long before the client takes it."""
    async with serving(1) as server, connected(server) as (connection,):
        await connection.get("/flood")
        assert (await connection.head())[0] == 200
        server.send()
        await server.is_draining()
        received = 0
        while piece := await connection.reader.read(1 << 20):
            received += len(piece)
            tail = piece[-5:]
            await asyncio.sleep(0.001)
        assert received > 1000 * 65536
        assert tail == b"0\r\n\r\n"
        assert await server.ended() == 0
