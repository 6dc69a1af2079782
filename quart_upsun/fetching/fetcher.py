"""Fetch URLs that strangers chose, within limits of size, time, redirects and content type.

`public_network` decides which addresses may be connected to.
"""

import asyncio
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Container
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import httpcore
import httpx

from quart_upsun.fetching.public_network import (
    STEP_TIMEOUT_SECONDS,
    Address,
    FetchError,
    Network,
    Resolver,
    is_public,
)
from quart_upsun.fetching.turns import Turns, Visit

TOTAL_TIMEOUT_SECONDS = 10.0  # for a fetch with its redirects
MAX_REDIRECTS = 5
# Where web sites live. Mail servers and databases would take a line of a request for a command.
PORTS = frozenset({80, 443, 8080, 8443})
DEFAULT_PORTS = {"http": 80, "https": 443}
CERTIFICATE = "Its certificate is not valid."
NO_CONNECTION = "It could not be connected to, or the connection broke."

ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS  # zlib or gzip, whichever it is
GZIP = b"\x1f\x8b"

PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
PAGE_BYTES, ICON_BYTES = 512 * 1024, 64 * 1024
MIN_PIECE_BYTES = 128  # that a piece counts at least: each costs a turn of the event loop
OVERHEAD_BYTES = 256 * 1024  # bytes of a response that may be headers and framing

USER_AGENT = b"quart-upsun (link preview)"
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}")
CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([a-z0-9_.:-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True)
class Fetched:
    """A response: `url` after redirects, `content` decompressed; the rest is as sent."""

    url: str
    status: int
    content_type: str | None
    charset: str | None
    content: bytes


class Fetcher:
    """Fetch any number of URLs at once, but only a few from the same host.

    Args:
        allowed: which numeric addresses and ports may be connected to. Others than the public ones
            are for tests and benchmarks that serve on this machine.
        ports: which ports a URL may name; as above.
        step_timeout: seconds to connect, and to wait for more bytes.
        total_timeout: seconds for a fetch with its redirects, without the wait for the host's turn.
        tls: who is trusted for https; by default the authorities that httpx brings along.
        resolver: looks names up; by default as the system is configured to.

    Attributes:
        turns: who may talk to which host.
    """

    def __init__(
        self,
        *,
        allowed: Callable[[Address, int], bool] = is_public,
        ports: Container[int] = PORTS,
        step_timeout: float = STEP_TIMEOUT_SECONDS,
        total_timeout: float = TOTAL_TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self._allowed = allowed
        self._ports = ports
        self._step_timeout, self._total_timeout = step_timeout, total_timeout
        self._tls = tls
        self._resolver = resolver or Resolver()
        self.turns = Turns()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the resolver, after the last fetch."""
        await self._resolver.close()

    async def get(
        self,
        url: str,
        *,
        accept: str = "text/html,application/xhtml+xml",
        max_bytes: int = PAGE_BYTES,
        content_types: Collection[str] | None = PAGE_TYPES,
        truncate: bool = False,
        visit: Visit | None = None,
        patience: float | None = None,
    ) -> Fetched:
        """Fetch an address.

        Args:
            url: http or https.
            accept: what to ask for, as the header has it.
            max_bytes: of the content, packed and unpacked.
            content_types: what is taken for an answer; None for whatever comes.
            truncate: return the first `max_bytes` of more, instead of failing.
            visit: keeps the turns of all hosts until its end. Without one, the turn of a host is
                given back before that of the next one is waited for.
            patience: seconds to wait for the turn of a host; by default as long as it takes. This
                wait is not part of the time a fetch may take.

        Raises:
            FetchError: with the reason, and whether to try again.
            HostBusyError: a host had no free turn in time.
        """
        target, remaining = self._checked(url), self._total_timeout
        for _ in range(MAX_REDIRECTS + 1):
            with nullcontext(visit) if visit else Visit(self.turns) as hop:
                await hop.enter(target.host.rstrip("."), patience)
                started = time.monotonic()
                try:
                    async with (
                        asyncio.timeout(remaining),
                        self._response(target, accept, max_bytes + OVERHEAD_BYTES) as response,
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
                    raise _too_slow(self._total_timeout) from None
                except httpcore.TimeoutException:
                    raise _too_slow(self._step_timeout) from None
                except httpcore.ProtocolError:
                    raise FetchError("Its answer is broken.", permanent=False) from None
                except (httpcore.NetworkError, OSError, ValueError) as error:
                    certificate = isinstance(error.__cause__, ssl.SSLCertVerificationError)
                    sentence = CERTIFICATE if certificate else NO_CONNECTION
                    raise FetchError(sentence, permanent=False) from None
                remaining -= time.monotonic() - started
        raise FetchError("It redirects too often.", permanent=True)

    def _checked(self, url: str, base: httpx.URL | None = None) -> httpx.URL:
        try:
            target = base.join(url) if base else httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise FetchError("The address is not valid.", permanent=True) from None
        if target.scheme not in DEFAULT_PORTS:
            raise FetchError("The address is not one of http or https.", permanent=True)
        if not target.host:
            raise FetchError("The address is not valid.", permanent=True)
        if target.userinfo:
            raise FetchError("The address holds a user name.", permanent=True)
        port = DEFAULT_PORTS[target.scheme] if target.port is None else target.port
        if port not in self._ports:
            raise FetchError("The address has a port that is not fetched from.", permanent=True)
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
        timeout = dict.fromkeys(("read", "write"), self._step_timeout)
        host = url.raw_host.decode("ascii")
        network = Network(self._resolver, self._allowed, budget)
        stream = await network.connect_tcp(host, where.origin.port, self._step_timeout)
        try:
            if tls is not None:
                stream = await stream.start_tls(tls, host, self._step_timeout)
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
        raise FetchError(f"It answered {status}.", permanent=not again)
    header = headers.get("content-type", "")
    match = MEDIA_TYPE.fullmatch(header.partition(";")[0].strip().lower())
    media_type = match[0] if match else None
    if wanted is not None and media_type not in wanted:
        kind = f"of the type {media_type}" if media_type else "of an unknown type"
        page = ", not a web page" if "text/html" in wanted else ""
        raise FetchError(f"It is {kind}{page}.", permanent=True)
    charset = CHARSET.search(header)
    return media_type, charset[1] if charset else None


async def _content(
    response: httpcore.Response, headers: httpx.Headers, max_bytes: int, truncate: bool
) -> bytes:
    """Read a body, unpacked, and never more of it in memory than asked for."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "", "gzip", "x-gzip", "deflate"}:
        raise FetchError("It is packed in a way that was not asked for.", permanent=True)
    unpacker = None if encoding in {"identity", ""} else _Unpacker()
    content, received = bytearray(), 0
    async for piece in response.aiter_stream():
        received += max(len(piece), MIN_PIECE_BYTES)
        try:
            # Not 0 at any time, which would be no limit.
            room = max_bytes + 1 - len(content)
            content += piece[:room] if unpacker is None else unpacker.decompress(piece, room)
        except zlib.error:
            raise FetchError("It cannot be unpacked.", permanent=False) from None
        if len(content) > max_bytes or received > max_bytes + OVERHEAD_BYTES:
            if truncate:
                break
            raise FetchError(f"It is larger than {_size(max_bytes)}.", permanent=True)
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
        self._member = zlib.decompressobj(ZLIB_OR_GZIP)
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
                self._member = zlib.decompressobj(ZLIB_OR_GZIP)
            content += self._member.decompress(data, limit - len(content))
            data = self._member.unused_data
        self._rest = data
        return bytes(content)


def _too_slow(seconds: float) -> FetchError:
    return FetchError(f"It did not answer within {seconds:g} seconds.", permanent=False)


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} KB"
