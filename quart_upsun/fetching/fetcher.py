"""An HTTP client for untrusted URLs, with limits for size, time, redirects and content types.

`public_network` decides which IP addresses it may connect to.
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
    INVALID_RESPONSE,
    INVALID_URL,
    STEP_TIMEOUT_SECONDS,
    Address,
    FetchError,
    Network,
    Resolver,
    is_public,
)
from quart_upsun.fetching.turns import Turns, Visit
from quart_upsun.spans import Attributes, client_span

TOTAL_TIMEOUT_SECONDS = 10.0  # for a fetch including redirects
MAX_REDIRECTS = 5
# Usual ports of web sites only: other services, such as mail servers, could interpret lines of an
# HTTP request as commands.
PORTS = frozenset({80, 443, 8080, 8443})
DEFAULT_PORTS = {"http": 80, "https": 443}
INVALID_CERTIFICATE = "The TLS certificate is not valid."
CONNECTION_FAILED = "The connection failed."
ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS  # detect the format
GZIP = b"\x1f\x8b"

PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
PAGE_BYTES, ICON_BYTES = 512 * 1024, 64 * 1024
MIN_CHUNK_BYTES = 128  # smaller chunks count as this many bytes, because each costs CPU time
OVERHEAD_BYTES = 256 * 1024  # allowance for headers and framing

USER_AGENT = b"quart-upsun (link preview)"
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}")
CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([a-z0-9_.:-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True)
class Fetched:
    """A successful response."""

    url: str
    """The URL after redirects."""
    status: int
    """The status code, 200 to 299."""
    content_type: str | None
    """The media type in lowercase, without parameters. None if it is missing or malformed."""
    charset: str | None
    """The charset parameter of the Content-Type header."""
    content: bytes
    """The decompressed body."""


class Fetcher:
    """Fetch untrusted URLs concurrently, with a concurrency limit per host.

    Use it as an async context manager, or call `close` at the end.

    Args:
        allowed: tells whether a connection to an IP address and port is allowed. Override it only
            for tests and benchmarks with local servers.
        ports: the ports that URLs may have. Override it only for tests and benchmarks.
        step_timeout: the timeout for connecting and for each read, in seconds.
        total_timeout: the timeout for a fetch including redirects, in seconds. The wait for a turn
            at the host does not count.
        tls: the TLS context. The default trusts the CA certificates of httpx.
        resolver: the DNS resolver. The default uses the system's configuration.

    Attributes:
        turns: the concurrency limit per host.
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
        """Close the DNS resolver. Call it after the last fetch has ended."""
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
        max_wait: float | None = None,
    ) -> Fetched:
        """Send a GET request and follow redirects.

        Args:
            url: an http or https URL.
            accept: the Accept header.
            max_bytes: the maximum size of the body, compressed and decompressed.
            content_types: the accepted media types. None to accept any.
            truncate: return the first `max_bytes` of a larger body instead of raising.
            visit: keeps the turns at all hosts until it ends. By default, the turn at a host is
                released before a redirect to another host is followed.
            max_wait: how long to wait for a turn at a host, in seconds; see `Visit.enter`. By
                default there is no limit. The wait does not count towards the timeouts.

        Raises:
            FetchError: the fetch failed. `permanent` tells whether a retry makes sense.
            HostBusyError: a host had no free turn in time.
        """
        target, remaining = self._validate(url), self._total_timeout
        for _ in range(MAX_REDIRECTS + 1):
            with nullcontext(visit) if visit else Visit(self.turns) as hop:
                await hop.enter(target.host.rstrip("."), max_wait)
                started = time.monotonic()
                try:
                    async with (
                        asyncio.timeout(remaining),
                        self._response(target, accept, max_bytes + OVERHEAD_BYTES) as response,
                    ):
                        headers = httpx.Headers(response.headers)
                        if response.status in {301, 302, 303, 307, 308} and "location" in headers:
                            target = self._validate(headers["location"], target)
                        else:
                            media_type, charset = _check_type(
                                response.status, headers, content_types
                            )
                            content = await _read_body(response, headers, max_bytes, truncate)
                            return Fetched(
                                str(target), response.status, media_type, charset, content
                            )
                # Never `from error`: its text may quote the response.
                except TimeoutError:
                    raise _timeout_error(self._total_timeout) from None
                except httpcore.TimeoutException:
                    raise _timeout_error(self._step_timeout) from None
                except httpcore.ProtocolError:
                    raise FetchError(INVALID_RESPONSE, permanent=False) from None
                except (httpcore.NetworkError, OSError, ValueError) as error:
                    is_certificate = isinstance(error.__cause__, ssl.SSLCertVerificationError)
                    message = INVALID_CERTIFICATE if is_certificate else CONNECTION_FAILED
                    raise FetchError(message, permanent=False) from None
                remaining -= time.monotonic() - started
        raise FetchError("Too many redirects.", permanent=True)

    def _validate(self, url: str, base: httpx.URL | None = None) -> httpx.URL:
        try:
            target = base.join(url) if base else httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise FetchError(INVALID_URL, permanent=True) from None
        if target.scheme not in DEFAULT_PORTS:
            raise FetchError("The URL must start with http:// or https://.", permanent=True)
        if not target.host:
            raise FetchError(INVALID_URL, permanent=True)
        if target.userinfo:
            raise FetchError("The URL must not contain a username or password.", permanent=True)
        port = DEFAULT_PORTS[target.scheme] if target.port is None else target.port
        if port not in self._ports:
            raise FetchError("The port of the URL is not allowed.", permanent=True)
        return target

    @asynccontextmanager
    async def _response(
        self, url: httpx.URL, accept: str, budget: int
    ) -> AsyncIterator[httpcore.Response]:
        """Connect, send the request, and close the connection at the end.

        httpx's client is not used, because it stores cookies and logs every URL. A connection pool
        would only cost time, because connections are not reused.
        """
        tls = None
        if url.scheme == "https":
            if self._tls is None:
                # Loads all CA certificates, which takes 20 ms or more.
                self._tls = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
                self._tls.set_alpn_protocols(["http/1.1"])
            tls = self._tls
        request_url = httpcore.URL(
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
        host, port = url.raw_host.decode("ascii"), request_url.origin.port
        network = Network(self._resolver, self._allowed, budget)
        # Neither the path, which may contain secrets, nor a header that names the trace.
        about: Attributes = {
            "http.request.method": "GET",
            "server.address": host,
            "server.port": port,
        }
        with client_span("GET", about) as span:
            stream = await network.connect_tcp(host, port, self._step_timeout)
            try:
                if tls is not None:
                    stream = await stream.start_tls(tls, host, self._step_timeout)
                connection = httpcore.AsyncHTTP11Connection(request_url.origin, stream)
                async with connection.stream(
                    "GET", request_url, headers=headers, extensions={"timeout": timeout}
                ) as response:
                    span.set_attributes({"http.response.status_code": response.status})
                    yield response
            finally:
                await stream.aclose()


def _check_type(
    status: int, headers: httpx.Headers, accepted: Collection[str] | None
) -> tuple[str | None, str | None]:
    """Check status code and content type, and return media type and charset."""
    if not 200 <= status < 300:
        is_temporary = status >= 500 or status in {408, 425, 429}
        raise FetchError(f"The server returned HTTP {status}.", permanent=not is_temporary)
    header = headers.get("content-type", "")
    match = MEDIA_TYPE.fullmatch(header.partition(";")[0].strip().lower())
    media_type = match[0] if match else None
    if accepted is not None and media_type not in accepted:
        kind = f"Unsupported content type: {media_type}." if media_type else "Unknown content type."
        raise FetchError(kind, permanent=True)
    charset = CHARSET.search(header)
    return media_type, charset[1] if charset else None


async def _read_body(
    response: httpcore.Response, headers: httpx.Headers, max_bytes: int, truncate: bool
) -> bytes:
    """Read and decompress a body, with at most `max_bytes` of it in memory."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "", "gzip", "x-gzip", "deflate"}:
        raise FetchError("Unsupported content encoding.", permanent=True)
    decompressor = None if encoding in {"identity", ""} else _Decompressor()
    content, received = bytearray(), 0
    async for chunk in response.aiter_stream():
        received += max(len(chunk), MIN_CHUNK_BYTES)
        try:
            room = max_bytes + 1 - len(content)  # never 0, which zlib would take for no limit
            content += (
                chunk[:room] if decompressor is None else decompressor.decompress(chunk, room)
            )
        except zlib.error:
            raise FetchError("The response could not be decompressed.", permanent=False) from None
        if len(content) > max_bytes or received > max_bytes + OVERHEAD_BYTES:
            if truncate:
                break
            raise FetchError(f"The response is larger than {_size(max_bytes)}.", permanent=True)
        if decompressor is not None and decompressor.is_done:
            break
        await asyncio.sleep(0)  # httpcore yields buffered chunks without giving up the event loop
    return bytes(content[:max_bytes])


class _Decompressor:
    """An incremental decompressor for zlib and gzip with several members (RFC 1952, section 2.2).

    Attributes:
        is_done: whether other data follows the compressed data.
    """

    def __init__(self) -> None:
        self.is_done = False
        self._member = zlib.decompressobj(ZLIB_OR_GZIP)
        self._rest = b""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Decompress a chunk into at most `limit` bytes. Anything beyond that is discarded.

        Raises:
            zlib.error: the data is invalid.
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


def _timeout_error(seconds: float) -> FetchError:
    return FetchError(f"Timed out after {seconds:g} seconds.", permanent=False)


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} KB"
