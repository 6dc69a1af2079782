"""Abort the connection of a client that does not read."""

import asyncio
import socket
import struct
from typing import Any

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from quart_upsun.compat.hypercorn import transport_of

SEND_KEY = "live.send"


class ConnectionMiddleware:
    """The outermost middleware, which gives views access to the connection of a request.

    ASGI has no way to abort a connection. If a response ends early, Hypercorn waits until the
    client has read what was sent before. If the client does not read, the connection and its
    buffers would stay, and the process could not shut down gracefully.
    """

    def __init__(self, app: ASGIFramework) -> None:
        self.app = app

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        kept: Any = scope
        kept[SEND_KEY] = send
        try:
            await self.app(scope, receive, send)
        finally:
            # Breaks a reference cycle, which would wait for the garbage collector.
            del kept[SEND_KEY]


class ClientConnection:
    """The connection of a request."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def abort(self) -> None:
        """Close the connection at once and discard unread data."""
        # Without this, the kernel keeps up to megabytes of unread data.
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def client_connection(scope: Any) -> ClientConnection | None:
    """Return the connection of a request; None without Hypercorn, for instance in tests."""
    transport = transport_of(scope.get(SEND_KEY))
    return ClientConnection(transport) if transport is not None else None
