"""Fetching what strangers link to: which addresses are reached, and how much of an answer."""

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
from quart_upsun.logging import configure_logging
from quart_upsun.testing.certificates import server_context

ANY_PORT = range(1, 65536)
HTML = "Content-Type: text/html; charset=utf-8\r\n"
# Stand for the internet and for what must not be reached: both are this machine.
PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - both, and which of them is reached can be told

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def on_this_machine(address: Address, port: int) -> bool:
    return address.is_loopback


def as_public(address: Address, port: int) -> bool:
    return address == ip_address(PUBLIC)


def fetcher(**options: Any) -> Fetcher:
    return Fetcher(**{"allowed": on_this_machine, "ports": ANY_PORT, **options})


def response(body: bytes = b"", status: str = "200 OK", headers: str = HTML) -> bytes:
    length = f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status}\r\n{headers}{length}\r\n".encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return response(status=status, headers=f"Location: {location}\r\n")


class Site:
    """A server that answers each request with the same bytes, or as a function of the request."""

    def __init__(self, answer: bytes | Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.reached: list[str] = []  # which of this machine's addresses
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
            self.reached.append(writer.get_extra_info("sockname")[0])
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
    answer: bytes | Answer, *, host: str = EVERYWHERE, tls: ssl.SSLContext | None = None
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


class Names(Resolver):
    """What names stand for; each lookup takes the next answer, and the last one from then on."""

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
    """A DNS server that knows a few names, and says nothing about those below `silent.example`."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known
        self.code = 3  # what it answers about the others: NXDOMAIN
        self.silent: set[str] = set()
        self.transport: asyncio.DatagramTransport | None = None
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def resolver(self) -> Resolver:
        assert self.transport is not None
        port = self.transport.get_extra_info("sockname")[1]
        return Resolver(nameservers=[f"127.0.0.1:{port}"], timeout=20, tries=1)

    async def ignored(self, count: int) -> None:
        """Wait until so many names have been asked for in vain."""
        while len(self.silent) < count:
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
            self.silent.add(name)
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
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr("quart_upsun.fetching.fetcher.Resolver", lambda: names)
    return names


async def failure(fetch: Awaitable[Fetched]) -> tuple[str, bool]:
    with pytest.raises(FetchError) as caught:
        await fetch
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value), caught.value.permanent


NOT_PUBLIC = ("The host has no public address.", True)

FORBIDDEN = [
    *("127.0.0.1", "127.255.255.254", EVERYWHERE, "0.1.2.3", "10.0.0.1", "10.255.255.255"),
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
async def test_addresses_that_are_never_reached(address: str, names: Names) -> None:
    assert not is_public(ip_address(address), 443)
    names.answers["example.com"] = [[address]]
    async with Fetcher() as fetch:
        assert await failure(fetch.get("http://example.com/")) == NOT_PUBLIC


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "223.255.255.255", "2606:4700::1111"],
)
def test_addresses_of_the_internet(address: str) -> None:
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
async def test_however_a_forbidden_address_is_written(host: str) -> None:
    async with site(response()) as served, Fetcher(ports=ANY_PORT) as fetch:
        found = await failure(fetch.get(f"http://{host}:{served.port}/"))
    # Numbers that are not in the usual form are names to the resolver, which nobody has.
    assert found in (NOT_PUBLIC, ("There is no such host.", True))
    assert served.reached == []


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://example.com/", "The address is not one of http or https."),
        ("file:///etc/passwd", "The address is not one of http or https."),
        ("gopher://example.com:80/x", "The address is not one of http or https."),
        ("http+unix://%2Frun%2Fsocket/", "The address is not one of http or https."),
        ("//example.com/", "The address is not one of http or https."),
        ("example.com", "The address is not one of http or https."),
        ("", "The address is not one of http or https."),
        ("http://user@example.com/", "The address holds a user name."),
        ("http://user:password@example.com/", "The address holds a user name."),
        ("http://example.com\\@127.0.0.1/", "The address holds a user name."),
        ("http://example.com:22/", "The address has a port that is not fetched from."),
        ("http://example.com:0/", "The address has a port that is not fetched from."),
        ("https://example.com:5432/", "The address has a port that is not fetched from."),
        ("http://example.com:99999999/", "The address has a port that is not fetched from."),
        ("http://example.com:http/", "The address is not valid."),
        ("http://[::1/", "The address is not valid."),
        ("http:///path", "The address is not valid."),
        ("http://", "The address is not valid."),
        ("http://a..b/", "The address is not valid."),
        (f"http://{'a' * 64}.example/", "The address is not valid."),
        ("http://exa\x00mple.com/", "The address is not valid."),
        ("http://example.com/\ud800", "The address is not valid."),
        ("http://0177.0.0.1/", "The address is not valid."),
    ],
)
async def test_addresses_that_are_not_looked_at(url: str, sentence: str) -> None:
    async with Fetcher(allowed=on_this_machine) as fetch:
        assert await failure(fetch.get(url)) == (sentence, True)


async def test_a_name_that_changes_its_mind_gains_nothing(names: Names) -> None:
    names.answers["rebind.example"] = [[PUBLIC], [PRIVATE]]
    async with site(response(b"hello")) as served, fetcher(allowed=as_public) as fetch:
        url = f"http://rebind.example:{served.port}/"
        assert (await fetch.get(url)).content == b"hello"
        assert names.lookups == ["rebind.example"]
        assert served.reached == [PUBLIC]
        # Nothing of it is kept for the next time, which looks again.
        assert await failure(fetch.get(url)) == NOT_PUBLIC
    assert names.lookups == ["rebind.example"] * 2
    assert served.reached == [PUBLIC]


async def test_of_mixed_answers_only_what_is_allowed_is_reached(names: Names) -> None:
    names.answers["mixed.example"] = [[PRIVATE, "::1", "10.0.0.1", PUBLIC]]
    async with site(response()) as served, fetcher(allowed=as_public) as fetch:
        await fetch.get(f"http://mixed.example:{served.port}/")
    assert served.reached == [PUBLIC]


async def test_the_next_address_is_tried_but_not_all(names: Names) -> None:
    names.answers["some.example"] = [["::1", "127.0.0.3", PRIVATE]]
    names.answers["many.example"] = [[f"127.0.0.{number}" for number in range(3, 250)]]
    async with site(response(), host=PRIVATE) as served, fetcher() as fetch:
        await fetch.get(f"http://some.example:{served.port}/")
        tried: list[Address] = []
        fetch._allowed = lambda address, port: not tried.append(address)  # type: ignore[func-returns-value]
        sentence, permanent = await failure(fetch.get(f"http://many.example:{served.port}/"))
        assert sentence == "It could not be connected to, or the connection broke."
        assert not permanent
        assert len(tried) == 2
    assert served.reached == [PRIVATE]


@pytest.mark.skipif(sys.platform != "linux", reason="relies on how a full queue behaves")
async def test_an_address_that_does_not_answer_leaves_time_for_the_next(names: Names) -> None:
    names.answers["some.example"] = [["127.0.0.3", PRIVATE]]
    async with site(response(), host=PRIVATE) as served, fetcher(step_timeout=0.2) as fetch:
        with ExitStack() as stack:
            silent, *visitors = (stack.enter_context(socket.socket()) for _ in range(5))
            silent.bind(("127.0.0.3", served.port))
            silent.listen(0)
            for visitor in visitors:  # fill its queue
                visitor.setblocking(False)
                visitor.connect_ex(("127.0.0.3", served.port))
            await fetch.get(f"http://some.example:{served.port}/")
    assert served.reached == [PRIVATE]


async def test_a_name_that_does_not_exist() -> None:
    async with name_server({}) as server, fetcher(resolver=server.resolver()) as fetch:
        found = await failure(fetch.get("http://unknown.example/"))
        assert found == ("There is no such host.", True)
        server.code = 2  # SERVFAIL
        assert await failure(fetch.get("http://a.example/")) == ("DNS lookup failed.", False)


async def test_silent_name_servers_delay_nobody_else() -> None:
    """However many there are: none of them holds what another lookup needs."""
    async with (
        site(response(b"hello")) as served,
        name_server({"good.example": PRIVATE}) as server,
        fetcher(resolver=server.resolver()) as fetch,
    ):
        silent = [
            asyncio.create_task(fetch.get(f"http://{number}.silent.example/"))
            for number in range(100)
        ]
        await asyncio.wait_for(server.ignored(100), 30)
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
        ("file:///etc/passwd", ("The address is not one of http or https.", True)),
        ("http://me@example.com/", ("The address holds a user name.", True)),
        ("http://example.com:25/", ("The address has a port that is not fetched from.", True)),
        ("http://example.com:x/", ("The address is not valid.", True)),
    ],
)
async def test_redirects_are_held_to_the_same(
    location: str, expected: tuple[str, bool], names: Names
) -> None:
    names.answers["public.example"] = [[PUBLIC]]

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(redirect(location.format(port=served.port)))
        await writer.drain()

    async with site(answer) as served:
        ports = {80, served.port}
        async with fetcher(allowed=as_public, ports=ports) as fetch:
            found = await failure(fetch.get(f"http://public.example:{served.port}/"))
    assert found == expected
    assert served.reached == [PUBLIC]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 T", "308 P"])
async def test_redirects_are_followed(status: str) -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        there = b"GET /there?x=1 " in request
        writer.write(response(b"there") if there else redirect("there?x=1#fragment", status))
        await writer.drain()

    async with site(answer) as served, fetcher() as fetch:
        found = await fetch.get(served.url)
    assert found == Fetched(f"{served.url}there?x=1#fragment", 200, "text/html", "utf-8", b"there")


async def test_redirects_end() -> None:
    async with site(redirect("/")) as served, fetcher() as fetch:
        assert await failure(fetch.get(served.url)) == ("It redirects too often.", True)
    assert len(served.requests) == 6
    async with site(response(status="302 Found", headers="")) as served, fetcher() as fetch:
        assert await failure(fetch.get(served.url)) == ("It answered 302.", True)


async def test_nothing_but_the_necessary_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
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
    ("answer", "sentence", "permanent"),
    [
        (response(status="404 Not Found"), "It answered 404.", True),
        (response(status="410 Gone"), "It answered 410.", True),
        (response(status="304 Not Modified"), "It answered 304.", True),
        (response(status="408 Timeout"), "It answered 408.", False),
        (response(status="425 Too Early"), "It answered 425.", False),
        (response(status="429 Too Many"), "It answered 429.", False),
        (response(status="503 Unavailable"), "It answered 503.", False),
        (
            response(headers="Content-Type: Application/PDF\r\n"),
            "It is of the type application/pdf, not a web page.",
            True,
        ),
        (
            response(headers="Content-Type: <script>/x; charset=utf-8\r\n"),
            "It is of an unknown type, not a web page.",
            True,
        ),
        (
            response(headers=f"Content-Type: {'a' * 100}/b\r\n"),
            "It is of an unknown type, not a web page.",
            True,
        ),
        (response(headers=""), "It is of an unknown type, not a web page.", True),
        (
            response(headers=f"{HTML}Content-Encoding: br\r\n"),
            "It is packed in a way that was not asked for.",
            True,
        ),
        (
            response(headers=f"{HTML}Content-Encoding: gzip, gzip\r\n"),
            "It is packed in a way that was not asked for.",
            True,
        ),
        (
            response(b"no gzip", headers=f"{HTML}Content-Encoding: gzip\r\n"),
            "It cannot be unpacked.",
            False,
        ),
        (b"SSH-2.0-OpenSSH_9.2 secret\r\n", "Its answer is broken.", False),
        (b"HTTP/1.1 200 OK\r\nsecret\r\n\r\n", "Its answer is broken.", False),
        (b"", "Its answer is broken.", False),
        (
            f"HTTP/1.1 200 OK\r\n{HTML}Content-Length: 9\r\n\r\n".encode(),
            "Its answer is broken.",
            False,
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 60_000, "Its answer is broken.", False),
        (b"HTTP/1.1 100 C\r\n\r\n" * 60_000, "Its answer is broken.", True),
        (b"HTTP/1.1 101 S\r\n\r\n", "Its answer is broken.", False),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
async def test_answers_that_are_of_no_use(answer: bytes, sentence: str, permanent: bool) -> None:
    async with site(answer) as served, fetcher() as fetch:
        assert await failure(fetch.get(served.url)) == (sentence, permanent)


async def test_what_the_header_says_of_the_content() -> None:
    headers = 'Content-Type: Text/HTML ; x="y"; Charset="ISO-8859-1"\r\n'
    async with site(response(headers=headers)) as served, fetcher() as fetch:
        found = await fetch.get(served.url)
        assert (found.content_type, found.charset) == ("text/html", "ISO-8859-1")
    async with site(response(b"\x89PNG", headers="Content-Type: ?\r\n")) as served, fetcher() as f:
        found = await f.get(served.url, content_types=None)
        assert (found.content_type, found.charset, found.content) == (None, None, b"\x89PNG")
        assert await failure(f.get(served.url, content_types={"image/png"})) == (
            "It is of an unknown type.",
            True,
        )


async def test_nobody_answers() -> None:
    async with site(response(), host=PRIVATE) as served:
        pass
    async with fetcher() as fetch:
        assert await failure(fetch.get(served.url)) == (
            "It could not be connected to, or the connection broke.",
            False,
        )


async def test_size() -> None:
    body = b"x" * 2000
    async with site(response(body)) as served, fetcher() as fetch:
        assert (await fetch.get(served.url, max_bytes=2000)).content == body
        assert await failure(fetch.get(served.url, max_bytes=1024)) == (
            "It is larger than 1 KB.",
            True,
        )
        assert (await fetch.get(served.url, max_bytes=1024, truncate=True)).content == body[:1024]
    async with site(response(b"x" * (2 << 20))) as served, fetcher() as fetch:
        assert await failure(fetch.get(served.url, max_bytes=1 << 20)) == (
            "It is larger than 1 MB.",
            True,
        )


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate", "GZIP"])
async def test_packed_content(name: str) -> None:
    body = b"<title>hello</title>" * 1000
    packed = zlib.compress(body) if name == "deflate" else gzip.compress(body)
    headers = f"{HTML}Content-Encoding: {name}\r\n"
    async with site(response(packed, headers=headers)) as served, fetcher() as fetch:
        assert (await fetch.get(served.url)).content == body
        assert (await fetch.get(served.url, max_bytes=10, truncate=True)).content == body[:10]
        assert (await failure(fetch.get(served.url, max_bytes=1024)))[1]


@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
async def test_gzip_of_several_members(size: int) -> None:
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


async def test_a_bomb_is_not_unpacked() -> None:
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = start + block * 1024  # 1 GB in 1 MB
    assert len(bomb) < 2 << 20
    headers = f"{HTML}Content-Encoding: gzip\r\n"
    async with site(response(bomb, headers=headers)) as served, fetcher() as fetch:
        tracemalloc.start()
        try:
            assert (await failure(fetch.get(served.url)))[0] == "It is larger than 512 KB."
            found = await fetch.get(served.url, truncate=True)
            assert tracemalloc.get_traced_memory()[1] < 6 << 20
        finally:
            tracemalloc.stop()
        assert found.content == bytes(512 * 1024)


def chunks(parts: Iterable[bytes], headers: str = HTML) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return f"HTTP/1.1 200 OK\r\n{headers}Transfer-Encoding: chunked\r\n\r\n".encode() + body


async def test_an_answer_in_crumbs_is_given_up() -> None:
    async with site(chunks([b"x"] * 30_000)) as served, fetcher() as fetch:
        found = await fetch.get(served.url, truncate=True)
        assert 1000 < len(found.content) < 10_000
        assert (await failure(fetch.get(served.url)))[1]
    headers = f"{HTML}Content-Encoding: gzip\r\n"
    empty = gzip.compress(b"")
    async with site(response(empty * 10_000, headers=headers)) as served, fetcher() as fetch:
        assert (await fetch.get(served.url)).content == b""
    async with site(response(empty * 50_000, headers=headers)) as served, fetcher() as fetch:
        assert (await failure(fetch.get(served.url)))[0] == "Its answer is broken."


@pytest.mark.parametrize("kind", ["pieces", "heads"])
async def test_the_loop_gets_its_turns(kind: str) -> None:
    async def watch() -> None:
        while True:
            turns.append(time.thread_time())
            await asyncio.sleep(0)

    turns: list[float] = []
    answer = chunks([b"x"] * 30_000) if kind == "pieces" else b"HTTP/1.1 100 C\r\n\r\n" * 30_000
    async with site(answer) as served, fetcher() as fetch:
        watcher = asyncio.create_task(watch())
        with suppress(FetchError):
            await fetch.get(served.url, truncate=True)
        watcher.cancel()
    # No turn of the loop takes much of all the work there is.
    longest = max(later - earlier for earlier, later in pairwise(turns))
    assert longest < (turns[-1] - turns[0]) / 8


async def drip(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\n{HTML}\r\n".encode())
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.005)


async def stall(request: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def test_a_slow_answer_is_given_up() -> None:
    async with site(drip) as served, fetcher(total_timeout=0.1) as fetch:
        assert await failure(fetch.get(served.url)) == (
            "It did not answer within 0.1 seconds.",
            False,
        )
    async with site(stall) as served, fetcher(step_timeout=0.05) as fetch:
        assert await failure(fetch.get(served.url)) == (
            "It did not answer within 0.05 seconds.",
            False,
        )


async def test_redirects_do_not_add_time() -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.04)
        writer.write(redirect("/"))
        await writer.drain()

    async with site(answer) as served, fetcher(total_timeout=0.1) as fetch:
        assert "0.1 seconds" in (await failure(fetch.get(served.url)))[0]
    assert len(served.requests) < 4


async def test_a_lookup_without_an_answer_is_given_up() -> None:
    async with (
        name_server({}) as server,
        fetcher(resolver=server.resolver(), step_timeout=0.05) as fetch,
    ):
        fetches = [failure(fetch.get(f"http://{number}.silent.example/")) for number in range(40)]
        for found in await asyncio.gather(*fetches):
            assert found == ("It did not answer within 0.05 seconds.", False)


async def test_a_handshake_without_end_leaves_nothing_open() -> None:
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
        await asyncio.wait_for(closed.wait(), 5)


async def test_certificates_are_those_of_the_name(names: Names, tmp_path: Path) -> None:
    certificate, context = await server_context(tmp_path, "tls.example")
    names.answers = {"tls.example": [[PRIVATE]], "other.example": [[PRIVATE]]}
    bad = ("Its certificate is not valid.", False)
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
    """Answers once it is opened, and tells how many wait for that."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = 0
        self.most = 0
        self.changed = asyncio.Condition()

    async def __call__(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        async with self.changed:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            self.changed.notify_all()
        await self.open.wait()
        self.waiting -= 1
        writer.write(response(b"hello"))
        await writer.drain()

    async def holds(self, count: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: self.waiting == count)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_host_is_asked_twice_at_a_time(names: Names) -> None:
    names.answers = {"one.example": [[PRIVATE]], "two.example": [[PRIVATE]]}
    gate = Gate()
    async with site(gate) as served, fetcher() as fetch:
        hosts = ["one.example", "ONE.example", "one.example.", "one.example", "two.example"]
        names.answers["one.example."] = [[PRIVATE]]
        tasks = [asyncio.create_task(fetch.get(f"http://{host}:{served.port}/")) for host in hosts]
        await gate.holds(3)  # two of one host, and the other host
        await settle()
        assert gate.waiting == 3
        assert len(names.lookups) == 3
        gate.open.set()
        assert [found.content for found in await asyncio.gather(*tasks)] == [b"hello"] * 5
    assert gate.most == 3


async def test_the_wait_for_a_turn_takes_none_of_the_time() -> None:
    gate = Gate()
    async with site(gate) as served, fetcher() as fetch:
        first = [asyncio.create_task(fetch.get(served.url)) for _ in range(2)]
        await gate.holds(2)
        fetch._total_timeout = 0.2
        third = asyncio.create_task(fetch.get(served.url))
        await asyncio.sleep(0.21)
        assert not third.done()
        gate.open.set()
        assert (await third).content == b"hello"
        await asyncio.gather(*first)


async def test_who_is_cancelled_gives_up_the_turn() -> None:
    gate = Gate()
    async with site(gate) as served, fetcher() as fetch:
        tasks = [asyncio.create_task(fetch.get(served.url)) for _ in range(4)]
        await gate.holds(2)
        tasks[0].cancel()  # asks
        tasks[2].cancel()  # waits
        await asyncio.wait([tasks[0], tasks[2]])
        assert tasks[0].cancelled()
        assert tasks[2].cancelled()
        await gate.holds(3)  # the server does not know of the first one's end; the last one asks
        gate.open.set()
        for task in (tasks[1], tasks[3]):
            assert (await task).content == b"hello"
        await failure(fetch.get("http://127.0.0.1:1/"))  # nor does who fails keep one
        tasks.clear()  # what they hold of their tracebacks
        del task
        gc.collect()
        assert len(fetch.turns) == 0


async def test_a_redirect_gives_up_the_turn_of_its_host(names: Names) -> None:
    names.answers = {"from.example": [[PRIVATE]], "to.example": [[PRIVATE]]}
    gate = Gate()
    all_have_come = asyncio.Event()

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        if len(served.requests) == 7:  # five at the one, two at the other
            all_have_come.set()
        if b"Host: from" in request:
            writer.write(redirect(f"http://to.example:{served.port}/"))
            await writer.drain()
        else:
            await gate(request, writer)

    async with site(answer) as served, fetcher() as fetch:
        url = f"http://from.example:{served.port}/"
        tasks = [asyncio.create_task(fetch.get(url)) for _ in range(5)]
        await gate.holds(2)
        await all_have_come.wait()
        gate.open.set()
        await asyncio.gather(*tasks)


async def test_hundreds_at_once(names: Names) -> None:
    hosts = [f"host-{number}.example" for number in range(300)]
    names.answers = {host: [[PUBLIC]] for host in hosts}
    gate = Gate()
    async with site(gate) as served, fetcher(allowed=as_public) as fetch:
        tasks = [asyncio.create_task(fetch.get(f"http://{host}:{served.port}/")) for host in hosts]
        await gate.holds(300)
        gate.open.set()
        assert {found.content for found in await asyncio.gather(*tasks)} == {b"hello"}
    assert sorted(names.lookups) == sorted(hosts)


async def test_no_address_and_no_answer_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
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
    assert found == ("It answered 500.", False)
    assert "s3cret" not in caplog.text
