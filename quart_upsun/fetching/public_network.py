"""Resolve host names and connect, but only to public addresses.

The check is on the very address that is connected to. So it does not matter how the URL is written,
where it redirects to, or whether its name resolves to something else a moment later.
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

STEP_TIMEOUT_SECONDS = 5.0  # to connect, or for the next bytes
ADDRESSES_PER_FAMILY = 2  # that are tried, whatever a name server lists

# All unicast addresses of the internet are in here. Outside are those that wrap an IPv4 address
# (mapped, NAT64), link-local, site-local and private ones, some of which `is_global` lets pass.
IPV6_INTERNET = ip_network("2000::/3")
NOT_THE_INTERNET = (
    ip_network("192.0.0.0/24"),  # protocol assignments, two of which are called global
    ip_network("192.88.99.0/24"),  # relays to 6to4
    ip_network("2001::/23"),  # Teredo and other protocols
    ip_network("2002::/16"),  # 6to4: wraps any IPv4 address
    ip_network("3fff::/20"),  # documentation; older Pythons do not know
)

Address = IPv4Address | IPv6Address


class FetchError(Exception):
    """A fetch failed. The message is a sentence for users, and repeats nothing the server sent.

    Attributes:
        permanent: whether a later attempt would only fail again.
    """

    def __init__(self, sentence: str, *, permanent: bool) -> None:
        super().__init__(sentence)
        self.permanent = permanent


def is_public(address: Address, port: int) -> bool:
    """Return whether this is a unicast address of the public internet."""
    if isinstance(address, IPv6Address) and (address.scope_id or address not in IPV6_INTERNET):
        return False
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved)
        and not any(address in network for network in NOT_THE_INTERNET)
    )


class Resolver:
    """Resolve names without a thread for each, so a silent name server delays nobody else.

    Args:
        options: of `aiodns.DNSResolver`, for tests with a name server of their own.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._resolver: aiodns.DNSResolver | None = None

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a host, in the system's order of preference.

        Raises:
            FetchError: there is no such host, or the lookup failed.
        """
        if self._resolver is None:  # made here, because it belongs to the running loop
            self._resolver = aiodns.DNSResolver(**self._options)
        try:
            found = await self._resolver.getaddrinfo(
                host, family=socket.AF_UNSPEC, port=port, type=socket.SOCK_STREAM
            )
        except DNSError as error:
            match error.args[0]:
                case code if code in {ARES_ENOTFOUND, ARES_ENODATA}:
                    raise FetchError("There is no such host.", permanent=True) from None
                case code if code == ARES_EBADNAME:
                    raise FetchError("The address is not valid.", permanent=True) from None
            raise FetchError("DNS lookup failed.", permanent=False) from None
        return [node.addr[0].decode() for node in found.nodes]

    async def close(self) -> None:
        if self._resolver is not None:
            await self._resolver.close()


class Network(httpcore.AsyncNetworkBackend):
    """Connect to a host if one of its addresses is allowed."""

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
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        deadline = time.monotonic() + (timeout or STEP_TIMEOUT_SECONDS)
        addresses = await self._addresses(host, port, timeout or STEP_TIMEOUT_SECONDS)
        failure: Exception | None = None
        for number, address in enumerate(addresses):
            # One that does not answer leaves the others their share of the time.
            share = (deadline - time.monotonic()) / (len(addresses) - number)
            try:
                # The number and never the name, which may stand for another by now.
                stream = await httpcore.AnyIOBackend().connect_tcp(
                    str(address), port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._budget)
        raise failure or FetchError("The host has no public address.", permanent=True)

    async def _addresses(self, host: str, port: int, seconds: float) -> list[Address]:
        """Return the addresses to try: allowed ones, in the system's order, few of each family."""
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
    """Reads in small pieces, so the event loop stays responsive, and only up to a budget."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, budget: int) -> None:
        self._stream = stream
        self._budget = budget

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        content = await self._stream.read(min(max_bytes, 8192), timeout)
        self._budget -= len(content)
        if self._budget < 0:
            raise FetchError("Its answer is broken.", permanent=True)
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
            await self.aclose()  # the library leaves it open when it is cancelled
            raise
        return _Stream(stream, self._budget)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
