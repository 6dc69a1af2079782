"""Fetches what users link to, within limits of size, time and kind: strangers choose the address.

Where it may lead is app/links/network.py's to say.
"""

import asyncio
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self
from weakref import WeakValueDictionary

import httpcore
import httpx

from app.links.network import STEP, Address, FetchFailed, Network, is_public

WHOLE = 10.0  # seconds for all of a fetch
REDIRECTS = 5
PER_HOST = 2  # at once, for each process
LOOKUPS = 32  # threads
# Where web sites live. Mail servers and databases would take a line of a request for a command.
PORTS = frozenset({80, 443, 8080, 8443})
DEFAULT_PORTS = {"http": 80, "https": 443}
CERTIFICATE = "Its certificate is not valid."
NO_CONNECTION = "It could not be connected to, or the connection broke."

EITHER = 32 + zlib.MAX_WBITS  # zlib or gzip, whichever it is
GZIP = b"\x1f\x8b"

PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
PAGE_BYTES, ICON_BYTES = 512 * 1024, 64 * 1024
PIECE = 128  # bytes that a piece of a response counts at least: each costs a turn of the loop
OVERHEAD = 256 * 1024  # bytes of a response that may be headers and framing

USER_AGENT = b"quart-upsun (link preview)"
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}")
CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([a-z0-9_.:-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True)
class Fetched:
    """A response: `url` after redirects, `content` unpacked; the rest is what its server says."""

    url: str
    status: int
    content_type: str | None
    charset: str | None
    content: bytes


class Fetcher:
    """Fetches pages and icons, any number at once, but few at a time of one host.

    Args:
        allowed: which numeric addresses and ports may be connected to. Others than the public ones
            are for tests and benchmarks that serve on this machine.
        ports: which ports a URL may name; as above.
        step: seconds to connect, and to wait for more.
        whole: seconds for a fetch with its redirects, but without the wait for the host's turn.
        tls: who is trusted for https; by default the authorities that httpx brings along.
    """

    def __init__(
        self,
        *,
        allowed: Callable[[Address, int], bool] = is_public,
        ports: Container[int] = PORTS,
        step: float = STEP,
        whole: float = WHOLE,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._ports = ports
        self._step, self._whole = step, whole
        self._tls = tls
        # Not the loop's own threads: a lookup cannot be stopped, and names that never resolve
        # would keep everything else that needs a thread waiting.
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="lookup")
        # A turn lives as long as somebody holds it or waits for it.
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up the threads, after the last fetch."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(
        self,
        url: str,
        *,
        accept: str = "text/html,application/xhtml+xml",
        max_bytes: int = PAGE_BYTES,
        content_types: Collection[str] | None = PAGE_TYPES,
        truncate: bool = False,
    ) -> Fetched:
        """Fetch an address.

        Args:
            url: http or https.
            accept: what to ask for, as the header has it.
            max_bytes: of the content, packed and unpacked.
            content_types: what is taken for an answer; None for whatever comes.
            truncate: return the first `max_bytes` of more, instead of failing.

        Raises:
            FetchFailed: with the reason, and whether to try again.
        """
        target, left = self._checked(url), self._whole
        for _ in range(REDIRECTS + 1):
            turn = self._turns.setdefault(target.host.rstrip("."), asyncio.Semaphore(PER_HOST))
            async with turn:
                started = time.monotonic()
                try:
                    async with (
                        asyncio.timeout(left),
                        self._response(target, accept, max_bytes + OVERHEAD) as response,
                    ):
                        headers = httpx.Headers(response.headers)
                        if response.status in {301, 302, 303, 307, 308} and "location" in headers:
                            target = self._checked(headers["location"], target)
                        else:
                            media_type, charset = _type(response.status, headers, content_types)
                            content = await _content(response, headers, max_bytes, truncate)
                            return Fetched(
                                str(target), response.status, media_type, charset, content
                            )
                # Never `from error`: its text may repeat what the other side has sent.
                except TimeoutError:
                    raise _slow(self._whole) from None
                except httpcore.TimeoutException:
                    raise _slow(self._step) from None
                except httpcore.ProtocolError:
                    raise FetchFailed("Its answer is broken.", permanent=False) from None
                except (httpcore.NetworkError, OSError, ValueError) as error:
                    certificate = isinstance(error.__cause__, ssl.SSLCertVerificationError)
                    sentence = CERTIFICATE if certificate else NO_CONNECTION
                    raise FetchFailed(sentence, permanent=False) from None
                left -= time.monotonic() - started
        raise FetchFailed("It redirects too often.", permanent=True)

    def _checked(self, url: str, base: httpx.URL | None = None) -> httpx.URL:
        try:
            target = base.join(url) if base else httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise FetchFailed("The address is not valid.", permanent=True) from None
        if target.scheme not in DEFAULT_PORTS:
            raise FetchFailed("The address is not one of http or https.", permanent=True)
        if not target.host:
            raise FetchFailed("The address is not valid.", permanent=True)
        if target.userinfo:
            raise FetchFailed("The address holds a user name.", permanent=True)
        port = DEFAULT_PORTS[target.scheme] if target.port is None else target.port
        if port not in self._ports:
            raise FetchFailed("The address has a port that is not fetched from.", permanent=True)
        return target

    @asynccontextmanager
    async def _response(
        self, url: httpx.URL, accept: str, budget: int
    ) -> AsyncIterator[httpcore.Response]:
        """Connect, ask, and hang up at the end.

        Below httpx's client, for it keeps cookies, and writes every URL into the log; and without
        a pool: nothing is asked twice, and a pool of 1,000 connections is searched for each.
        """
        tls = None
        if url.scheme == "https":
            if self._tls is None:
                # Reads all certificates: 20 ms and more.
                self._tls = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
                self._tls.set_alpn_protocols(["http/1.1"])
            tls = self._tls
        where = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        headers = [
            (b"Host", url.netloc),
            (b"User-Agent", USER_AGENT),
            (b"Accept", accept.encode()),
            (b"Accept-Encoding", b"gzip"),
            (b"Connection", b"close"),
        ]
        timeout = dict.fromkeys(("read", "write"), self._step)
        host = url.raw_host.decode("ascii")
        network = Network(self._threads, self._allowed, budget)
        stream = await network.connect_tcp(host, where.origin.port, self._step)
        try:
            if tls is not None:
                stream = await stream.start_tls(tls, host, self._step)
            connection = httpcore.AsyncHTTP11Connection(where.origin, stream)
            async with connection.stream(
                "GET", where, headers=headers, extensions={"timeout": timeout}
            ) as response:
                yield response
        finally:
            await stream.aclose()


def _type(
    status: int, headers: httpx.Headers, wanted: Collection[str] | None
) -> tuple[str | None, str | None]:
    """Return media type and charset of an answer that is worth reading."""
    if not 200 <= status < 300:
        again = status >= 500 or status in {408, 425, 429}
        raise FetchFailed(f"It answered {status}.", permanent=not again)
    header = headers.get("content-type", "")
    match = MEDIA_TYPE.fullmatch(header.partition(";")[0].strip().lower())
    media_type = match[0] if match else None
    if wanted is not None and media_type not in wanted:
        kind = f"of the type {media_type}" if media_type else "of an unknown type"
        page = ", not a web page" if "text/html" in wanted else ""
        raise FetchFailed(f"It is {kind}{page}.", permanent=True)
    charset = CHARSET.search(header)
    return media_type, charset[1] if charset else None


async def _content(
    response: httpcore.Response, headers: httpx.Headers, max_bytes: int, truncate: bool
) -> bytes:
    """Read a body, unpacked, and never more of it in memory than asked for."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "", "gzip", "x-gzip", "deflate"}:
        raise FetchFailed("It is packed in a way that was not asked for.", permanent=True)
    unpacker = None if encoding in {"identity", ""} else _Unpacker()
    content, received = bytearray(), 0
    async for piece in response.aiter_stream():
        received += max(len(piece), PIECE)
        try:
            # Not 0 at any time, which would be no limit.
            room = max_bytes + 1 - len(content)
            content += piece[:room] if unpacker is None else unpacker.decompress(piece, room)
        except zlib.error:
            raise FetchFailed("It cannot be unpacked.", permanent=False) from None
        if len(content) > max_bytes or received > max_bytes + OVERHEAD:
            if truncate:
                break
            raise FetchFailed(f"It is larger than {_size(max_bytes)}.", permanent=True)
        if unpacker is not None and unpacker.is_done:
            break
        await asyncio.sleep(0)  # pieces that have come together are handed out without a pause
    return bytes(content[:max_bytes])


class _Unpacker:
    """Unpacks a body of zlib, or of gzip: that may have several members (RFC 1952, 2.2).

    Attributes:
        is_done: whether something else follows what was packed.
    """

    def __init__(self) -> None:
        self.is_done = False
        self._member = zlib.decompressobj(EITHER)
        self._rest = b""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Return what a piece holds, `limit` bytes at most: then the rest is lost.

        Raises:
            zlib.error: it is packed in another way, or damaged.
        """
        content, data = bytearray(), self._rest + data
        while data and len(content) < limit:
            if self._member.eof:
                if len(data) < len(GZIP):
                    break
                if not data.startswith(GZIP):
                    self.is_done = True
                    break
                self._member = zlib.decompressobj(EITHER)
            content += self._member.decompress(data, limit - len(content))
            data = self._member.unused_data
        self._rest = data
        return bytes(content)


def _slow(seconds: float) -> FetchFailed:
    return FetchFailed(f"It did not answer within {seconds:g} seconds.", permanent=False)


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} KB"
