"""Request framing: no request smuggling through Content-Length and Transfer-Encoding."""

from collections.abc import AsyncIterator

import pytest

from quart_upsun.testing.servers import Connection, Server
from quart_upsun.tests.process.application import serving

SECOND = b"GET /quick HTTP/1.1\r\nHost: example.com\r\n\r\n"
LENGTH = "Content-Length: 5"
TOO_LONG = "Content-Length: 99999999"  # more than the body limit
CHUNKED = "Transfer-Encoding: chunked"
END = b"0\r\n\r\n"
POST = "POST /body HTTP/1.1"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(1) as server:
        yield server
        await server.stop_cleanly()


async def answers(
    server: Server, head: str, *headers: str, body: bytes
) -> tuple[list[int], bytes, bool]:
    """Send two requests on one connection.

    Return the status of each response, the body of the first, and whether the server has closed the
    connection.
    """
    connection = await Connection.to(server)
    lines = [head, "Host: example.com", *headers, "", ""]
    await connection.send("\r\n".join(lines).encode() + body + SECOND)
    status, received, first = await connection.read_response()
    statuses, closed = [status], False
    if received.get("connection", "").lower() == "close":
        closed = await connection.wait_closed()
    else:
        statuses.append((await connection.read_response())[0])
    await connection.close()
    return statuses, first, closed


async def test_content_length_with_chunks_is_ignored_and_closes_the_connection(
    server: Server,
) -> None:
    for header, body in ((LENGTH, b"01234"), (CHUNKED, b"5\r\n01234\r\n" + END)):
        assert await answers(server, POST, header, body=body) == ([200, 200], b"5", False)
    for headers in ((LENGTH, CHUNKED), (CHUNKED, LENGTH), (CHUNKED, TOO_LONG)):
        found = await answers(server, POST, *headers, body=b"3\r\nabc\r\n" + END)
        assert found == ([200], b"3", True), headers
        # Also if the view does not read the body, or there is no view.
        for head, status in (("GET /quick HTTP/1.1", 200), ("POST /nowhere HTTP/1.1", 404)):
            statuses, _, closed = await answers(server, head, *headers, body=END)
            assert (statuses, closed) == ([status], True), (head, headers)


async def test_an_invalid_content_length_closes_the_connection(server: Server) -> None:
    for status, *headers in (
        (400, LENGTH, "Content-Length: 6"),
        (400, "Content-Length: 5, 6"),
        (400, "Content-Length: +5"),
        (400, "Content-Length: -5"),
        (400, "Content-Length: 0x5"),
        (400, LENGTH, "Transfer-Encoding : chunked"),
        (400, LENGTH, "Transfer-Encoding: \x0bchunked"),
        (501, "Transfer-Encoding: gzip"),
        (501, LENGTH, "Transfer-Encoding: identity"),
        (501, "Transfer-Encoding: gzip, chunked"),
        (501, CHUNKED, "Transfer-Encoding: identity"),
    ):
        statuses, _, closed = await answers(server, POST, *headers, body=END)
        assert (statuses, closed) == ([status], True), headers


async def test_invalid_chunks_close_the_connection(server: Server) -> None:
    for body in (b"0x3\r\nabc\r\n", b"3\r\nabcde\r\n", b"3\nabc\r\n", b"-1\r\n"):
        statuses, _, closed = await answers(server, POST, CHUNKED, body=body + END)
        assert (statuses, closed) == ([400], True), body


async def test_http_1_0_connections_are_closed(server: Server) -> None:
    """A proxy may not support chunks in HTTP/1.0."""
    for headers, body in (((LENGTH,), b"01234"), ((CHUNKED,), END), ((CHUNKED, LENGTH), END)):
        statuses, _, closed = await answers(
            server, "POST /body HTTP/1.0", "Connection: keep-alive", *headers, body=body
        )
        assert (len(statuses), closed) == (1, True), headers
