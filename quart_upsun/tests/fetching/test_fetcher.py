"""Fetching untrusted URLs: SSRF protection, limits, redirects and concurrency."""

import asyncio
import gc
import gzip
import socket
import ssl
import sys
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from quart_upsun.fetching import Address, Fetched, Fetcher, FetchError, Resolver, is_public
from quart_upsun.fetching.fetcher import CONNECTION_FAILED, INVALID_CERTIFICATE
from quart_upsun.fetching.public_network import INVALID_RESPONSE, INVALID_URL
from quart_upsun.logging import configure_logging
from quart_upsun.testing.certificates import server_context

ANY_PORT = range(1, 65536)
HTML = "Content-Type: text/html; charset=utf-8\r\n"
# Both are loopback addresses; the tests treat one as public and the other as private.
PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - listen on both, and record which one is used

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def is_loopback(address: Address, port: int) -> bool:
    return address.is_loopback


def is_test_public(address: Address, port: int) -> bool:
    return address == ip_address(PUBLIC)


def fetcher(**options: Any) -> Fetcher:
    return Fetcher(**{"allowed": is_loopback, "ports": ANY_PORT, **options})


def response(body: bytes = b"", status: str = "200 OK", headers: str = HTML) -> bytes:
    length = f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status}\r\n{headers}{length}\r\n".encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return response(status=status, headers=f"Location: {location}\r\n")


class Site:
    """An HTTP server that sends fixed bytes, or calls a function for each request."""

    def __init__(self, answer: bytes | Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.local_addresses: list[str] = []  # the server's address of each connection
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{PRIVATE}:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            self.local_addresses.append(writer.get_extra_info("sockname")[0])
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                request = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(request)
                if isinstance(self.answer, bytes):
                    writer.write(self.answer)
                    await writer.drain()
                else:
                    await self.answer(request, writer)
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            self.tasks.discard(task)


@asynccontextmanager
async def site(
    answer: bytes | Answer, *, host: str = ANY_ADDRESS, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    served = Site(answer)
    server = await asyncio.start_server(served.serve, host, 0, ssl=tls, backlog=1000)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in list(served.tasks):
            task.cancel()
        await asyncio.gather(*served.tasks, return_exceptions=True)
        await server.wait_closed()


class FakeResolver(Resolver):
    """A resolver with fixed answers by host name.

    Each lookup of a name uses its next answer. The last answer is repeated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, list[list[str]]] = {}
        self.lookups: list[str] = []

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        self.lookups.append(host)
        if host not in self.answers:
            return await super().addresses(host, port)
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class NameServer(asyncio.DatagramProtocol):
    """A DNS server with a few records. It does not respond to queries below `silent.example`."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known
        self.code = 3  # the response code for unknown names: NXDOMAIN
        self.ignored_names: set[str] = set()
        self.transport: asyncio.DatagramTransport | None = None
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def resolver(self) -> Resolver:
        assert self.transport is not None
        port = self.transport.get_extra_info("sockname")[1]
        return Resolver(nameservers=[f"127.0.0.1:{port}"], timeout=20, tries=1)

    async def wait_for_ignored(self, count: int) -> None:
        """Wait until queries for `count` names have been ignored."""
        while len(self.ignored_names) < count:
            self.changed.clear()
            await self.changed.wait()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode().lower())
            at += 1 + data[at]
        name, question = ".".join(labels), data[12 : at + 5]
        kind = int.from_bytes(data[at + 1 : at + 3])
        if name.endswith("silent.example"):
            self.ignored_names.add(name)
            self.changed.set()
            return
        number = self.known.get(name)
        answer = b""
        if number and kind == 1:
            answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + ip_address(number).packed
        code = 0 if number else self.code
        counts = b"\x00\x01" + bool(answer).to_bytes(2) + b"\x00\x00\x00\x00"
        assert self.transport is not None
        self.transport.sendto(
            data[:2] + b"\x81" + bytes([0x80 | code]) + counts + question + answer, address
        )


@asynccontextmanager
async def name_server(known: dict[str, str]) -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: NameServer(known), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> FakeResolver:
    """A fake DNS resolver for all fetchers of the test."""
    resolver = FakeResolver()
    monkeypatch.setattr("quart_upsun.fetching.fetcher.Resolver", lambda: resolver)
    return resolver


async def failure(fetch: Awaitable[Fetched]) -> tuple[str, bool]:
    """Return the message and the permanence of the fetch's error."""
    with pytest.raises(FetchError) as caught:
        await fetch
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value), caught.value.permanent


NOT_PUBLIC = ("The host has no public IP address.", True)

FORBIDDEN = [
    *("127.0.0.1", "127.255.255.254", ANY_ADDRESS, "0.1.2.3", "10.0.0.1", "10.255.255.255"),
    *("172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.127.255.255"),
    *("169.254.0.1", "169.254.169.254", "192.0.0.1", "192.0.0.9", "192.0.0.10", "192.0.0.170"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255"),
    *("192.88.99.1", "224.0.0.1", "233.252.0.1", "239.255.255.250", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::127.0.0.1", "::8.8.8.8"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8"),
    *("::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808"),
    *("64:ff9b:1::1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
    *("2002:808:808::1", "2001::1", "2001:0:7f00:1::1", "2001:10::1", "2001:20::1"),
    *("2001:db8::1", "3fff::1", "100::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fdff::1"),
    *("fe80::1", "fe80::1%lo", "2606:4700::1111%lo", "febf::1", "fec0::1", "feff::1"),
    *("ff02::1", "ff0e::1", "4000::1"),
]


@pytest.mark.parametrize("address", FORBIDDEN)
async def test_private_and_reserved_addresses_are_rejected(
    address: str, names: FakeResolver
) -> None:
    assert not is_public(ip_address(address), 443)
    names.answers["example.com"] = [[address]]
    async with Fetcher() as fetch:
        assert await failure(fetch.get("http://example.com/")) == NOT_PUBLIC


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "223.255.255.255", "2606:4700::1111"],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ip_address(address), 443)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "127.1", "2130706433", "0x7f.1"),
        *("0x7f000001", "017700000001", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]"),
        *("[::ffff:7f00:1]", "[64:ff9b::127.0.0.1]", "[fe80::1]", "169.254.169.254"),
        *("[fd00:ec2::254]", "2852039166"),
    ],
)
async def test_forbidden_address_is_rejected_in_every_notation(host: str) -> None:
    async with site(response()) as served, Fetcher(ports=ANY_PORT) as fetch:
        found = await failure(fetch.get(f"http://{host}:{served.port}/"))
    # The resolver treats unusual notations of numbers as host names, which do not exist.
    assert found in (NOT_PUBLIC, ("The host does not exist.", True))
    assert served.local_addresses == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.com/", "The URL must start with http:// or https://."),
        ("file:///etc/passwd", "The URL must start with http:// or https://."),
        ("gopher://example.com:80/x", "The URL must start with http:// or https://."),
        ("http+unix://%2Frun%2Fsocket/", "The URL must start with http:// or https://."),
        ("//example.com/", "The URL must start with http:// or https://."),
        ("example.com", "The URL must start with http:// or https://."),
        ("", "The URL must start with http:// or https://."),
        ("http://user@example.com/", "The URL must not contain a username or password."),
        ("http://user:password@example.com/", "The URL must not contain a username or password."),
        ("http://example.com\\@127.0.0.1/", "The URL must not contain a username or password."),
        ("http://example.com:22/", "The port of the URL is not allowed."),
        ("http://example.com:0/", "The port of the URL is not allowed."),
        ("https://example.com:5432/", "The port of the URL is not allowed."),
        ("http://example.com:99999999/", "The port of the URL is not allowed."),
        ("http://example.com:http/", INVALID_URL),
        ("http://[::1/", INVALID_URL),
        ("http:///path", INVALID_URL),
        ("http://", INVALID_URL),
        ("http://a..b/", INVALID_URL),
        (f"http://{'a' * 64}.example/", INVALID_URL),
        ("http://exa\x00mple.com/", INVALID_URL),
        ("http://example.com/\ud800", INVALID_URL),
        ("http://0177.0.0.1/", INVALID_URL),
    ],
)
async def test_invalid_url_is_rejected_before_the_lookup(url: str, message: str) -> None:
    async with Fetcher(allowed=is_loopback) as fetch:
        assert await failure(fetch.get(url)) == (message, True)


async def test_dns_rebinding_is_prevented(names: FakeResolver) -> None:
    names.answers["rebind.example"] = [[PUBLIC], [PRIVATE]]
    async with site(response(b"hello")) as served, fetcher(allowed=is_test_public) as fetch:
        url = f"http://rebind.example:{served.port}/"
        assert (await fetch.get(url)).content == b"hello"
        assert names.lookups == ["rebind.example"]
        assert served.local_addresses == [PUBLIC]
        # The answer is not cached, so the next fetch looks the name up again.
        assert await failure(fetch.get(url)) == NOT_PUBLIC
    assert names.lookups == ["rebind.example"] * 2
    assert served.local_addresses == [PUBLIC]


async def test_only_allowed_addresses_of_a_host_are_used(names: FakeResolver) -> None:
    names.answers["mixed.example"] = [[PRIVATE, "::1", "10.0.0.1", PUBLIC]]
    async with site(response()) as served, fetcher(allowed=is_test_public) as fetch:
        await fetch.get(f"http://mixed.example:{served.port}/")
    assert served.local_addresses == [PUBLIC]


async def test_connects_to_at_most_two_addresses_of_a_host(names: FakeResolver) -> None:
    names.answers["some.example"] = [["::1", "127.0.0.3", PRIVATE]]
    names.answers["many.example"] = [[f"127.0.0.{number}" for number in range(3, 250)]]
    async with site(response(), host=PRIVATE) as served, fetcher() as fetch:
        await fetch.get(f"http://some.example:{served.port}/")
        tried: list[Address] = []
        fetch._allowed = lambda address, port: not tried.append(address)  # type: ignore[func-returns-value]
        found = await failure(fetch.get(f"http://many.example:{served.port}/"))
        assert found == (CONNECTION_FAILED, False)
        assert len(tried) == 2
    assert served.local_addresses == [PRIVATE]


@pytest.mark.skipif(sys.platform != "linux", reason="relies on Linux's full accept queues")
async def test_unresponsive_address_leaves_time_for_the_next(names: FakeResolver) -> None:
    names.answers["some.example"] = [["127.0.0.3", PRIVATE]]
    async with site(response(), host=PRIVATE) as served, fetcher(step_timeout=2) as fetch:
        with ExitStack() as stack:
            silent, *visitors = (stack.enter_context(socket.socket()) for _ in range(5))
            silent.bind(("127.0.0.3", served.port))
            silent.listen(0)
            for visitor in visitors:  # fill the accept queue
                visitor.setblocking(False)
                visitor.connect_ex(("127.0.0.3", served.port))
            await fetch.get(f"http://some.example:{served.port}/")
    assert served.local_addresses == [PRIVATE]


async def test_unknown_host_and_failed_dns_lookup() -> None:
    async with name_server({}) as server, fetcher(resolver=server.resolver()) as fetch:
        found = await failure(fetch.get("http://unknown.example/"))
        assert found == ("The host does not exist.", True)
        server.code = 2  # SERVFAIL
        assert await failure(fetch.get("http://a.example/")) == ("DNS lookup failed.", False)


async def test_slow_dns_lookups_do_not_block_others() -> None:
    async with (
        site(response(b"hello")) as served,
        name_server({"good.example": PRIVATE}) as server,
        fetcher(resolver=server.resolver()) as fetch,
    ):
        silent = [
            asyncio.create_task(fetch.get(f"http://{number}.silent.example/"))
            for number in range(100)
        ]
        await asyncio.wait_for(server.wait_for_ignored(100), 30)
        found = await fetch.get(f"http://good.example:{served.port}/")
        assert found.content == b"hello"
        assert not any(task.done() for task in silent)
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://169.254.169.254/latest/meta-data/", NOT_PUBLIC),
        ("http://[::1]:{port}/", NOT_PUBLIC),
        ("http://127.0.0.1:{port}/", NOT_PUBLIC),
        ("//localhost:{port}/", NOT_PUBLIC),
        ("https://127.0.0.1:{port}/", NOT_PUBLIC),
        ("file:///etc/passwd", ("The URL must start with http:// or https://.", True)),
        ("http://me@example.com/", ("The URL must not contain a username or password.", True)),
        ("http://example.com:25/", ("The port of the URL is not allowed.", True)),
        ("http://example.com:x/", (INVALID_URL, True)),
    ],
)
async def test_redirect_targets_are_validated(
    location: str, expected: tuple[str, bool], names: FakeResolver
) -> None:
    names.answers["public.example"] = [[PUBLIC]]

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(redirect(location.format(port=served.port)))
        await writer.drain()

    async with site(answer) as served:
        ports = {80, served.port}
        async with fetcher(allowed=is_test_public, ports=ports) as fetch:
            found = await failure(fetch.get(f"http://public.example:{served.port}/"))
    assert found == expected
    assert served.local_addresses == [PUBLIC]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 T", "308 P"])
async def test_follows_redirects(status: str) -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        there = b"GET /there?x=1 " in request
        writer.write(response(b"there") if there else redirect("there?x=1#fragment", status))
        await writer.drain()

    async with site(answer) as served, fetcher() as fetch:
        found = await fetch.get(served.url)
    assert found == Fetched(f"{served.url}there?x=1#fragment", 200, "text/html", "utf-8", b"there")


async def test_rejects_too_many_redirects() -> None:
    async with site(redirect("/")) as served, fetcher() as fetch:
        assert await failure(fetch.get(served.url)) == ("Too many redirects.", True)
    assert len(served.requests) == 6
    async with site(response(status="302 Found", headers="")) as served, fetcher() as fetch:
        assert await failure(fetch.get(served.url)) == ("The server returned HTTP 302.", True)


async def test_request_has_no_cookies_and_ignores_proxy_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    headers = f"{HTML}Set-Cookie: id=1\r\n"
    async with site(response(headers=headers)) as served, fetcher() as fetch:
        await fetch.get(f"{served.url}?q=a b#fragment", accept="image/*")
        await fetch.get(served.url)
    first, second = (request.decode().split("\r\n") for request in served.requests)
    assert first[:-2] == [
        "GET /?q=a%20b HTTP/1.1",
        f"Host: 127.0.0.1:{served.port}",
        "User-Agent: quart-upsun (link preview)",
        "Accept: image/*",
        "Accept-Encoding: gzip",
        "Connection: close",
    ]
    assert not any("cookie" in line.lower() for line in second)


@pytest.mark.parametrize(
    ("answer", "message", "permanent"),
    [
        (response(status="404 Not Found"), "The server returned HTTP 404.", True),
        (response(status="410 Gone"), "The server returned HTTP 410.", True),
        (response(status="304 Not Modified"), "The server returned HTTP 304.", True),
        (response(status="408 Timeout"), "The server returned HTTP 408.", False),
        (response(status="425 Too Early"), "The server returned HTTP 425.", False),
        (response(status="429 Too Many"), "The server returned HTTP 429.", False),
        (response(status="503 Unavailable"), "The server returned HTTP 503.", False),
        (
            response(headers="Content-Type: Application/PDF\r\n"),
            "Unsupported content type: application/pdf.",
            True,
        ),
        (
            response(headers="Content-Type: <script>/x; charset=utf-8\r\n"),
            "Unknown content type.",
            True,
        ),
        (
            response(headers=f"Content-Type: {'a' * 100}/b\r\n"),
            "Unknown content type.",
            True,
        ),
        (response(headers=""), "Unknown content type.", True),
        (
            response(headers=f"{HTML}Content-Encoding: br\r\n"),
            "Unsupported content encoding.",
            True,
        ),
        (
            response(headers=f"{HTML}Content-Encoding: gzip, gzip\r\n"),
            "Unsupported content encoding.",
            True,
        ),
        (
            response(b"no gzip", headers=f"{HTML}Content-Encoding: gzip\r\n"),
            "The response could not be decompressed.",
            False,
        ),
        (b"SSH-2.0-OpenSSH_9.2 secret\r\n", INVALID_RESPONSE, False),
        (b"HTTP/1.1 200 OK\r\nsecret\r\n\r\n", INVALID_RESPONSE, False),
        (b"", INVALID_RESPONSE, False),
        (
            f"HTTP/1.1 200 OK\r\n{HTML}Content-Length: 9\r\n\r\n".encode(),
            INVALID_RESPONSE,
            False,
        ),
        (
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 60_000,
            INVALID_RESPONSE,
            False,
        ),
        (b"HTTP/1.1 100 C\r\n\r\n" * 60_000, INVALID_RESPONSE, True),
        (b"HTTP/1.1 101 S\r\n\r\n", INVALID_RESPONSE, False),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
async def test_invalid_responses_are_rejected(answer: bytes, message: str, permanent: bool) -> None:
    async with site(answer) as served, fetcher() as fetch:
        assert await failure(fetch.get(served.url)) == (message, permanent)


async def test_content_type_and_charset_are_parsed() -> None:
    headers = 'Content-Type: Text/HTML ; x="y"; Charset="ISO-8859-1"\r\n'
    async with site(response(headers=headers)) as served, fetcher() as fetch:
        found = await fetch.get(served.url)
        assert (found.content_type, found.charset) == ("text/html", "ISO-8859-1")
    async with site(response(b"\x89PNG", headers="Content-Type: ?\r\n")) as served, fetcher() as f:
        found = await f.get(served.url, content_types=None)
        assert (found.content_type, found.charset, found.content) == (None, None, b"\x89PNG")
        assert await failure(f.get(served.url, content_types={"image/png"})) == (
            "Unknown content type.",
            True,
        )


async def test_connection_refused() -> None:
    async with site(response(), host=PRIVATE) as served:
        pass
    async with fetcher() as fetch:
        assert await failure(fetch.get(served.url)) == (
            CONNECTION_FAILED,
            False,
        )


async def test_response_size_is_limited() -> None:
    body = b"x" * 2000
    async with site(response(body)) as served, fetcher() as fetch:
        assert (await fetch.get(served.url, max_bytes=2000)).content == body
        assert await failure(fetch.get(served.url, max_bytes=1024)) == (
            "The response is larger than 1 KB.",
            True,
        )
        assert (await fetch.get(served.url, max_bytes=1024, truncate=True)).content == body[:1024]
    async with site(response(b"x" * (2 << 20))) as served, fetcher() as fetch:
        assert await failure(fetch.get(served.url, max_bytes=1 << 20)) == (
            "The response is larger than 1 MB.",
            True,
        )


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate", "GZIP"])
async def test_compressed_content(name: str) -> None:
    body = b"<title>hello</title>" * 1000
    packed = zlib.compress(body) if name == "deflate" else gzip.compress(body)
    headers = f"{HTML}Content-Encoding: {name}\r\n"
    async with site(response(packed, headers=headers)) as served, fetcher() as fetch:
        assert (await fetch.get(served.url)).content == body
        assert (await fetch.get(served.url, max_bytes=10, truncate=True)).content == body[:10]
        assert (await failure(fetch.get(served.url, max_bytes=1024)))[1]


@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
async def test_gzip_with_several_members(size: int) -> None:
    members = [b"<title>", b"", b"hello" * 1000, b"</title>"]
    packed = b"".join(map(gzip.compress, members))
    parts = [packed[start : start + size] for start in range(0, len(packed), size)]
    answer = chunks(parts, f"{HTML}Content-Encoding: gzip\r\n") + b"0\r\n\r\n"
    padded = response(packed + b"\0" * 100, headers=f"{HTML}Content-Encoding: gzip\r\n")
    async with site(answer) as served, fetcher() as fetch:
        assert (await fetch.get(served.url)).content == b"".join(members)
        assert (await failure(fetch.get(served.url, max_bytes=1000)))[1]
        cut = await fetch.get(served.url, max_bytes=1000, truncate=True)
        assert cut.content == b"".join(members)[:1000]
    async with site(padded) as served, fetcher() as fetch:
        assert (await fetch.get(served.url)).content == b"".join(members)


async def test_decompression_bomb_is_stopped() -> None:
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = start + block * 1024  # 1 GB in 1 MB
    assert len(bomb) < 2 << 20
    headers = f"{HTML}Content-Encoding: gzip\r\n"
    async with site(response(bomb, headers=headers)) as served, fetcher() as fetch:
        tracemalloc.start()
        try:
            assert (await failure(fetch.get(served.url)))[
                0
            ] == "The response is larger than 512 KB."
            found = await fetch.get(served.url, truncate=True)
            assert tracemalloc.get_traced_memory()[1] < 6 << 20
        finally:
            tracemalloc.stop()
        assert found.content == bytes(512 * 1024)


def chunks(parts: Iterable[bytes], headers: str = HTML) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return f"HTTP/1.1 200 OK\r\n{headers}Transfer-Encoding: chunked\r\n\r\n".encode() + body


async def test_tiny_chunks_count_towards_the_size_limit() -> None:
    async with site(chunks([b"x"] * 30_000)) as served, fetcher() as fetch:
        found = await fetch.get(served.url, truncate=True)
        assert 1000 < len(found.content) < 10_000
        assert (await failure(fetch.get(served.url)))[1]
    headers = f"{HTML}Content-Encoding: gzip\r\n"
    empty = gzip.compress(b"")
    async with site(response(empty * 10_000, headers=headers)) as served, fetcher() as fetch:
        assert (await fetch.get(served.url)).content == b""
    async with site(response(empty * 50_000, headers=headers)) as served, fetcher() as fetch:
        assert (await failure(fetch.get(served.url)))[0] == INVALID_RESPONSE


@pytest.mark.parametrize("kind", ["chunks", "interim responses"])
async def test_event_loop_stays_responsive(kind: str) -> None:
    async def watch() -> None:
        while True:
            times.append(time.thread_time())
            await asyncio.sleep(0)

    times: list[float] = []
    answer = chunks([b"x"] * 30_000) if kind == "chunks" else b"HTTP/1.1 100 C\r\n\r\n" * 30_000
    async with site(answer) as served, fetcher() as fetch:
        watcher = asyncio.create_task(watch())
        with suppress(FetchError):
            await fetch.get(served.url, truncate=True)
        watcher.cancel()
    # No single iteration of the event loop takes much of the total time.
    longest = max(later - earlier for earlier, later in pairwise(times))
    assert longest < (times[-1] - times[0]) / 8


async def drip(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\n{HTML}\r\n".encode())
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.005)


async def stall(request: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def test_slow_response_times_out() -> None:
    async with site(drip) as served, fetcher(total_timeout=0.1) as fetch:
        assert await failure(fetch.get(served.url)) == (
            "Timed out after 0.1 seconds.",
            False,
        )
    async with site(stall) as served, fetcher(step_timeout=0.05) as fetch:
        assert await failure(fetch.get(served.url)) == (
            "Timed out after 0.05 seconds.",
            False,
        )


async def test_total_timeout_includes_redirects() -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.04)
        writer.write(redirect("/"))
        await writer.drain()

    async with site(answer) as served, fetcher(total_timeout=0.1) as fetch:
        assert "0.1 seconds" in (await failure(fetch.get(served.url)))[0]
    assert len(served.requests) < 4


async def test_dns_lookup_times_out() -> None:
    async with (
        name_server({}) as server,
        fetcher(resolver=server.resolver(), step_timeout=0.05) as fetch,
    ):
        fetches = [failure(fetch.get(f"http://{number}.silent.example/")) for number in range(40)]
        for found in await asyncio.gather(*fetches):
            assert found == ("Timed out after 0.05 seconds.", False)


async def test_cancelled_tls_handshake_closes_the_connection() -> None:
    hello = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        hello.set()
        while await reader.read(1000):
            pass
        writer.close()
        await writer.wait_closed()
        closed.set()

    closed = asyncio.Event()
    server = await asyncio.start_server(silent, PRIVATE, 0)
    port = server.sockets[0].getsockname()[1]
    async with server, fetcher() as fetch:
        task = asyncio.create_task(fetch.get(f"https://{PRIVATE}:{port}/"))
        await hello.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(closed.wait(), 20)


async def test_certificate_must_match_the_host(names: FakeResolver, tmp_path: Path) -> None:
    certificate, context = await server_context(tmp_path, "tls.example")
    names.answers = {"tls.example": [[PRIVATE]], "other.example": [[PRIVATE]]}
    bad = (INVALID_CERTIFICATE, False)
    async with site(response(b"hello"), tls=context) as served:
        url = f"https://tls.example:{served.port}/"
        async with fetcher(tls=ssl.create_default_context(cafile=certificate)) as fetch:
            assert (await fetch.get(url)).content == b"hello"
            for host in ("other.example", PRIVATE):
                assert await failure(fetch.get(f"https://{host}:{served.port}/")) == bad
        async with fetcher() as fetch:
            assert await failure(fetch.get(url)) == bad
            plain = await failure(fetch.get(f"http://tls.example:{served.port}/"))
            assert not plain[1]
    assert len(served.requests) == 1


class Gate:
    """A request handler that responds only after `open` is set, and counts waiting requests."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = 0
        self.max_waiting = 0
        self.changed = asyncio.Condition()

    async def __call__(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        async with self.changed:
            self.waiting += 1
            self.max_waiting = max(self.max_waiting, self.waiting)
            self.changed.notify_all()
        await self.open.wait()
        self.waiting -= 1
        writer.write(response(b"hello"))
        await writer.drain()

    async def wait_for(self, count: int) -> None:
        """Wait until exactly `count` requests are waiting."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: self.waiting == count)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_at_most_two_concurrent_fetches_per_host(names: FakeResolver) -> None:
    names.answers = {"one.example": [[PRIVATE]], "two.example": [[PRIVATE]]}
    gate = Gate()
    async with site(gate) as served, fetcher() as fetch:
        hosts = ["one.example", "ONE.example", "one.example.", "one.example", "two.example"]
        names.answers["one.example."] = [[PRIVATE]]
        tasks = [asyncio.create_task(fetch.get(f"http://{host}:{served.port}/")) for host in hosts]
        await gate.wait_for(3)  # two for one.example, one for two.example
        await settle()
        assert gate.waiting == 3
        assert len(names.lookups) == 3
        gate.open.set()
        assert [found.content for found in await asyncio.gather(*tasks)] == [b"hello"] * 5
    assert gate.max_waiting == 3


async def test_waiting_for_a_turn_does_not_count_towards_the_timeout() -> None:
    gate = Gate()
    async with site(gate) as served, fetcher() as fetch:
        first = [asyncio.create_task(fetch.get(served.url)) for _ in range(2)]
        await gate.wait_for(2)
        fetch._total_timeout = 3
        third = asyncio.create_task(fetch.get(served.url))
        await asyncio.sleep(3.1)
        assert not third.done()
        gate.open.set()
        assert (await third).content == b"hello"
        await asyncio.gather(*first)


async def test_cancelled_and_failed_fetches_release_their_turn() -> None:
    gate = Gate()
    async with site(gate) as served, fetcher() as fetch:
        tasks = [asyncio.create_task(fetch.get(served.url)) for _ in range(4)]
        await gate.wait_for(2)
        tasks[0].cancel()  # is fetching
        tasks[2].cancel()  # waits for a turn
        await asyncio.wait([tasks[0], tasks[2]])
        assert tasks[0].cancelled()
        assert tasks[2].cancelled()
        await gate.wait_for(3)  # the server still counts the canceled request
        gate.open.set()
        for task in (tasks[1], tasks[3]):
            assert (await task).content == b"hello"
        await failure(fetch.get("http://127.0.0.1:1/"))
        tasks.clear()  # their tracebacks refer to the semaphores
        del task
        gc.collect()
        assert len(fetch.turns) == 0


async def test_redirect_releases_the_turn_at_its_host(names: FakeResolver) -> None:
    names.answers = {"from.example": [[PRIVATE]], "to.example": [[PRIVATE]]}
    gate = Gate()
    all_requested = asyncio.Event()

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        if len(served.requests) == 7:  # five for from.example, two for to.example
            all_requested.set()
        if b"Host: from" in request:
            writer.write(redirect(f"http://to.example:{served.port}/"))
            await writer.drain()
        else:
            await gate(request, writer)

    async with site(answer) as served, fetcher() as fetch:
        url = f"http://from.example:{served.port}/"
        tasks = [asyncio.create_task(fetch.get(url)) for _ in range(5)]
        await gate.wait_for(2)
        await all_requested.wait()
        gate.open.set()
        await asyncio.gather(*tasks)


async def test_fetches_from_many_hosts_run_concurrently(names: FakeResolver) -> None:
    hosts = [f"host-{number}.example" for number in range(300)]
    names.answers = {host: [[PUBLIC]] for host in hosts}
    gate = Gate()
    async with site(gate) as served, fetcher(allowed=is_test_public) as fetch:
        tasks = [asyncio.create_task(fetch.get(f"http://{host}:{served.port}/")) for host in hosts]
        await gate.wait_for(300)
        gate.open.set()
        assert {found.content for found in await asyncio.gather(*tasks)} == {b"hello"}
    assert sorted(names.lookups) == sorted(hosts)


async def test_urls_and_responses_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        secret = "Set-Cookie: s3cret=1\r\n"
        if b"GET /again" in request:
            writer.write(response(b"s3cret", "500 s3cret", f"{HTML}{secret}"))
        else:
            writer.write(response(b"", "302 Found", f"Location: /again?s3cret=1\r\n{secret}"))
        await writer.drain()

    configure_logging("debug")
    async with site(answer) as served, fetcher() as fetch:
        found = await failure(fetch.get(f"{served.url}s3cret?s3cret=1"))
    assert found == ("The server returned HTTP 500.", False)
    assert "s3cret" not in caplog.text
