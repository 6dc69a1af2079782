"""Request bodies and heads that are too large or too slow, on real sockets."""

import asyncio
import time
from contextlib import suppress

import psutil

from quart_upsun.http.headers import SECURITY_HEADERS
from quart_upsun.testing.servers import Connection
from quart_upsun.tests.process.application import SHORT_BODY_TIMEOUT_SECONDS, serving

PIECE = b"x" * 65536
MEGABYTES = 26
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'
END = b"\r\n--b--\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def post(connection: Connection, path: str, *headers: str) -> None:
    """Send the head of a request with a body."""
    lines = [f"POST {path} HTTP/1.1", "Host: example.com", *headers, "", ""]
    await connection.send("\r\n".join(lines).encode())


async def post_file(connection: Connection, path: str, megabytes: int) -> None:
    """Send a form with one file in chunks, to the end, even if the server has already answered."""
    kind = "Content-Type: multipart/form-data; boundary=b"
    await post(connection, path, kind, "Transfer-Encoding: chunked")
    await connection.send(chunk(FILE))
    for _ in range(megabytes * 16):
        await connection.send(chunk(PIECE))
    await connection.send(chunk(END) + chunk(b""))


async def test_a_chunked_body_is_limited() -> None:
    async with serving(1) as server:
        (pid,) = server.pids()
        memory = psutil.Process(pid).memory_info
        connection = await Connection.to(server)
        await post_file(connection, "/form", 1)
        status, _, _ = await connection.read_response()
        assert status == 413, "one megabyte plus the multipart framing"
        await connection.close()

        before = memory().rss
        # No view keeps data beyond the limit in memory, whether it streams the body, reads it at
        # once or ignores it.
        for path, expected in (
            *(("/form", 413), ("/body", 413), ("/quick", 200)),
            # The body is received before the mounted application is called.
            *(("/old/form", 413), ("/old/body", 413), ("/old/quick", 413)),
        ):
            connection = await Connection.to(server)
            await post_file(connection, path, MEGABYTES)
            # The client has sent everything, and still gets the response.
            status, headers, _ = await connection.read_response()
            assert status == expected, path
            for name, value in SECURITY_HEADERS.items():
                assert headers[name.lower()] == value
            if status == 413:
                assert headers["connection"] == "close"
                assert await connection.wait_closed()
            await connection.close()
        assert memory().rss - before < MEGABYTES * 2**20 / 2
        await server.stop_cleanly()


async def test_a_slow_body_times_out() -> None:
    async with serving(1, "impatient") as server:
        for path in ("/form", "/body", "/old/form", "/old/body", "/old/quick"):
            connection = await Connection.to(server)
            kind = "Content-Type: application/x-www-form-urlencoded"
            started = time.monotonic()
            # The timeout is for the whole body: each byte does not restart it.
            await post(connection, path, kind, "Content-Length: 1000")
            dripping = asyncio.create_task(drip(connection))
            status, headers, _ = await connection.read_response()
            assert status == 408
            assert time.monotonic() - started >= SHORT_BODY_TIMEOUT_SECONDS
            assert headers["connection"] == "close"
            # Without waiting for the rest of the body.
            assert await connection.wait_closed()
            dripping.cancel()
            with suppress(asyncio.CancelledError):
                await dripping
            await connection.close()
        await server.stop_cleanly()


async def test_an_endless_request_closes_the_connection() -> None:
    async with serving(1) as server:
        # A body that the view does not read.
        connection = await Connection.to(server)
        await post(connection, "/quick", "Content-Length: 1000")
        status, _, body = await connection.read_response()
        assert (status, body) == (200, b"answered")
        assert await connection.wait_closed()
        await connection.close()
        # An endless request line or header.
        for start in (b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX: "):
            connection = await Connection.to(server)
            await connection.send(start + b"x" * 20_000)
            status, headers = await connection.read_head()
            assert status == 431
            assert headers["connection"] == "close"
            assert await connection.wait_closed()
            await connection.close()
        await server.stop_cleanly()


async def drip(connection: Connection) -> None:
    """Send a byte at a time until the connection is closed."""
    with suppress(OSError):
        while True:
            await connection.send(b"x")
            await asyncio.sleep(SHORT_BODY_TIMEOUT_SECONDS / 20)
