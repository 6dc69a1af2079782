"""A mounted application on the real server: streams, hanging views, disconnects and shutdown."""

import asyncio
import json
import time

import httpx
import psutil
import pytest

from quart_upsun.server.serve import CANCEL_SECONDS
from quart_upsun.testing.servers import UPSUN, Connection, eventually
from quart_upsun.tests.process.application import serving

FIRST_BYTES = b"x" * 65536


async def test_a_stream_waits_for_its_client_and_ends_with_it() -> None:
    async with serving(1) as server:
        (pid,) = server.pids()
        memory = psutil.Process(pid).memory_info
        connection = await Connection.to(server)
        await connection.get("/old/flood")
        assert (await connection.read_head())[0] == 200
        before = memory().rss
        await asyncio.sleep(0.5)  # the client does not read, so the view must wait
        assert memory().rss - before < 16 * 2**20
        assert server.events("flood ended") == []
        await connection.close()
        await server.wait_for_event("flood ended")
        # The whole stream arrives at a client that reads.
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert len((await client.get("/old/flood")).content) == 1000 * 65536
        await server.stop_cleanly()


async def test_disconnected_clients_do_not_occupy_threads() -> None:
    async with serving(1) as server:
        for _ in range(40):  # more than there are threads
            connection = await Connection.to(server)
            await connection.get("/old/flood")
            assert (await connection.read_head())[0] == 200
            await connection.close()
        await eventually(lambda: len(server.events("flood ended")) == 40, "end of the streams")
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/old/quick")).text == "answered"
        await server.stop_cleanly()


async def test_a_stalled_client_does_not_occupy_a_thread() -> None:
    async with serving(1, "impatient") as server:
        connection = await Connection.to(server)
        await connection.get("/old/flood")
        assert (await connection.read_head())[0] == 200
        await server.wait_for_event("flood ended")
        await connection.close()
        await server.stop_cleanly()


async def test_a_hanging_view_gets_a_504_and_does_not_delay_the_shutdown() -> None:
    async with (
        serving(1, "impatient", **UPSUN) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        response = await client.get("/old/thread")
        assert response.status_code == 504
        assert "took too long" in response.text
        assert (await client.get("/about/")).status_code == 200
        server.send()
        assert await server.wait_for_exit() == 0
        assert time.monotonic() - server.stopped < CANCEL_SECONDS
    (problem,) = map(json.loads, server.problems())
    assert problem["event"] == "mounted application timed out"
    assert problem["request_id"] == response.headers["X-Request-ID"]


async def test_a_stream_that_breaks_off_is_not_taken_for_the_whole() -> None:
    async with serving(1, **UPSUN) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/raw/breaks-off")
        server.send()
        assert await server.wait_for_exit() == 0
    assert "a secret" not in server.output.replace('ValueError(\\"a secret', "")
    assert len(server.events("mounted application failed")) == 1


async def test_an_error_shows_no_traceback_on_upsun() -> None:
    variables = {**UPSUN, "PLATFORM_ENVIRONMENT_TYPE": "development", "FLASK_DEBUG": "1"}
    async with (
        serving(1, **variables) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        for path in ("/old/error/x", "/raw/raises"):
            response = await client.get(path)
            assert response.status_code == 500
            for inside in ("Traceback", "RuntimeError", "ValueError", "this view", "secret"):
                assert inside not in response.text


async def test_shutdown_finishes_requests_in_threads() -> None:
    async with serving(2) as server:
        connections = [await Connection.to(server) for _ in range(20)]
        for connection in connections:
            await connection.get("/old/slow?seconds=2")
        await server.wait_for_event("sleeping", times=len(connections))
        server.send()
        await server.wait_until_draining()
        for connection in connections:
            assert (await connection.read_response())[::2] == (200, b"done")
            await connection.close()
        assert await server.wait_for_exit() == 0
        assert server.problems() == []
