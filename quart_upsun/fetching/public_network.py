"""Protection against server-side request forgery (SSRF): connect to public IP addresses only.

The check applies to the very IP address of the connection. So neither unusual spellings of a URL,
nor redirects, nor DNS rebinding can bypass it.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import aiodns
import httpcore
from aiodns.error import ARES_EBADNAME, ARES_ENODATA, ARES_ENOTFOUND, DNSError

INVALID_URL = "The URL is not valid."
INVALID_RESPONSE = "The server sent an invalid response."

STEP_TIMEOUT_SECONDS = 5.0  # to connect, and for each read
ADDRESSES_PER_FAMILY = 2  # connection attempts per IP version, however many addresses DNS returns

# All public IPv6 unicast addresses. Not in here are addresses that embed an IPv4 address (mapped,
# NAT64), link-local, site-local and private ones. `is_global` is true for some of these.
IPV6_INTERNET = ip_network("2000::/3")
NOT_THE_INTERNET = (
    ip_network("192.0.0.0/24"),  # protocol assignments, two of which are global
    ip_network("192.88.99.0/24"),  # 6to4 relays
    ip_network("2001::/23"),  # Teredo and other protocols
    ip_network("2002::/16"),  # 6to4, embeds any IPv4 address
    ip_network("3fff::/20"),  # documentation, unknown to older Python versions
)

Address = IPv4Address | IPv6Address


class FetchError(Exception):
    """A fetch failed. The message is meant for users and quotes nothing that the server sent.

    Attributes:
        permanent: whether a retry would fail again.
    """

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


def is_public(address: Address, port: int) -> bool:
    """Tell whether an IP address is a public unicast address. All ports are allowed."""
    if isinstance(address, IPv6Address) and (address.scope_id or address not in IPV6_INTERNET):
        return False
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved)
        and not any(address in network for network in NOT_THE_INTERNET)
    )


class Resolver:
    """An asynchronous DNS resolver. It needs no threads, so slow lookups do not block others.

    Args:
        options: options of `aiodns.DNSResolver`, for tests with their own DNS server.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._resolver: aiodns.DNSResolver | None = None

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Return the IP addresses of a host, in the system's order of preference.

        Raises:
            FetchError: the host does not exist, or the lookup failed.
        """
        if self._resolver is None:  # it needs the running event loop
            self._resolver = aiodns.DNSResolver(**self._options)
        try:
            found = await self._resolver.getaddrinfo(
                host, family=socket.AF_UNSPEC, port=port, type=socket.SOCK_STREAM
            )
        except DNSError as error:
            match error.args[0]:
                case code if code in {ARES_ENOTFOUND, ARES_ENODATA}:
                    raise FetchError("The host does not exist.", permanent=True) from None
                case code if code == ARES_EBADNAME:
                    raise FetchError(INVALID_URL, permanent=True) from None
            raise FetchError("DNS lookup failed.", permanent=False) from None
        return [node.addr[0].decode() for node in found.nodes]

    async def close(self) -> None:
        """Close the resolver."""
        if self._resolver is not None:
            await self._resolver.close()


class Network(httpcore.AsyncNetworkBackend):
    """A network backend for httpcore that connects to allowed IP addresses only.

    Args:
        resolver: resolves host names.
        allowed: tells whether a connection to an IP address and port is allowed.
        budget: the maximum number of bytes to read from a connection.
    """

    def __init__(
        self, resolver: Resolver, allowed: Callable[[Address, int], bool], budget: int
    ) -> None:
        self._resolver = resolver
        self._allowed = allowed
        self._budget = budget

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        deadline = time.monotonic() + (timeout or STEP_TIMEOUT_SECONDS)
        addresses = await self._addresses(host, port, timeout or STEP_TIMEOUT_SECONDS)
        failure: Exception | None = None
        for number, address in enumerate(addresses):
            # Divide the time, so that an unresponsive address leaves some for the others.
            share = (deadline - time.monotonic()) / (len(addresses) - number)
            try:
                # Connect to the checked IP address, because resolving the name again could return
                # another one.
                stream = await httpcore.AnyIOBackend().connect_tcp(
                    str(address), port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._budget)
        raise failure or FetchError("The host has no public IP address.", permanent=True)

    async def _addresses(self, host: str, port: int, seconds: float) -> list[Address]:
        """Return the allowed IP addresses to try, a few per IP version, in the system's order."""
        try:
            async with asyncio.timeout(seconds):
                found = await self._resolver.addresses(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        addresses: dict[Address, None] = {}
        for each in found:
            address = ip_address(each)
            same_family = sum(other.version == address.version for other in addresses)
            if same_family < ADDRESSES_PER_FAMILY and self._allowed(address, port):
                addresses[address] = None
        return list(addresses)


class _Stream(httpcore.AsyncNetworkStream):
    """A network stream with small reads, to keep the event loop responsive, and a byte budget."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, budget: int) -> None:
        self._stream = stream
        self._budget = budget

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        content = await self._stream.read(min(max_bytes, 8192), timeout)
        self._budget -= len(content)
        if self._budget < 0:
            raise FetchError(INVALID_RESPONSE, permanent=True)
        return content

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self.aclose()  # httpcore leaves the stream open on cancellation
            raise
        return _Stream(stream, self._budget)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
