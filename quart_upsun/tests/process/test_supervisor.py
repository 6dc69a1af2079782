"""The supervisor: restarts of processes, and its own death."""

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from quart_upsun.testing.servers import EXIT_SECONDS, Connection, Server, eventually
from quart_upsun.tests.process.application import serving


@asynccontextmanager
async def steady_requests(server: Server) -> AsyncIterator[Counter[int]]:
    """Send requests one after the other on new connections; count responses by process."""
    answers: Counter[int] = Counter()

    async def send_requests() -> None:
        while True:
            connection = await Connection.to(server)
            try:
                await connection.get("/process")
                status, _, body = await connection.read_response()
                assert status == 200
                answers[int(body)] += 1
            finally:
                await connection.close()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(send_requests())
        yield answers
        task.cancel()


async def test_a_killed_process_is_restarted() -> None:
    async with serving(2) as server:
        victim, other = server.pids()
        # Suspended first, so that it has no requests when it is killed.
        os.kill(victim, signal.SIGSTOP)
        async with steady_requests(server) as answers:
            await eventually(lambda: answers[other] > 50, "answers of the other process")
            os.kill(victim, signal.SIGKILL)
            await server.wait_for_event("server ready", times=3)
            (new,) = set(server.pids()) - {victim, other}
            await eventually(lambda: answers[new] > 0, "answers of the new process")
        assert set(answers) == {other, new}
        death = server.events("server process died")
        assert [(event["pid"], event["exit_code"]) for event in death] == [
            (victim, -signal.SIGKILL)
        ]
        assert death[0]["restart_in_seconds"] == 0

        # The second consecutive death is restarted with backoff.
        os.kill(new, signal.SIGKILL)
        deaths = await server.wait_for_event("server process died", times=2)
        assert deaths[1]["restart_in_seconds"] >= 1
        await server.wait_for_event("server ready", times=4)
        assert len(server.pids()) == 2

        server.send()
        assert await server.wait_for_exit() == 0


async def test_a_terminated_process_is_restarted() -> None:
    """It drains without losing requests, and the other process keeps serving."""
    async with serving(2) as server:
        victim, other = server.pids()
        async with steady_requests(server) as answers:
            os.kill(victim, signal.SIGTERM)
            await server.wait_for_event("server ready", times=3)
            (new,) = set(server.pids()) - {victim, other}
            await eventually(lambda: answers[new] > 0, "answers of the new process")
        server.send()
        assert await server.wait_for_exit() == 0


async def test_processes_drain_when_the_supervisor_is_killed() -> None:
    """The processes drain by themselves and free the port."""
    async with serving(2) as server:
        connections = [await Connection.to(server) for _ in range(8)]
        for connection in connections:
            await connection.send(
                b"POST /body HTTP/1.1\r\nHost: example.com\r\nContent-Length: 10\r\n\r\n12345"
            )
        await server.wait_for_event("reading", times=len(connections))
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/livez")).status_code == 200
        server.send(signal.SIGKILL)
        await server.wait_until_draining()
        started = server.cpu_seconds()
        await asyncio.sleep(1)
        # They wait for the rest of the requests without a busy loop.
        assert server.cpu_seconds() - started < 0.3
        for connection in connections:
            await connection.send(b"67890")
            status, _, body = await connection.read_response()
            assert (status, body) == (200, b"10")
            await connection.close()
        assert await server.wait_for_exit() == -signal.SIGKILL
        assert time.monotonic() - server.stopped < EXIT_SECONDS
        assert server.problems() == []
        assert len(server.events("after serving")) == 2
        with socket.create_server(("127.0.0.1", server.port)):
            pass
