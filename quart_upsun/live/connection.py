"""A way to end the connection of a client that does not read."""

import asyncio
import socket
import struct
from typing import Any

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from quart_upsun.compat.hypercorn import transport_of

SEND_KEY = "live.send"


class ConnectionMiddleware:
    """The layer next to the server: keeps the way to the connection while a request is answered.

    ASGI knows no way to give a connection up. An answer that is cut short is ended by Hypercorn
    with waiting until the client has taken what was sent before, which this client does not do:
    the connection and its buffers would stay, and the process could not end in order.
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
            del kept[
                SEND_KEY
            ]  # they refer to each other, and should not wait for the garbage collector


class ClientConnection:
    """What a request came in on."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def abort(self) -> None:
        """End the connection at once, and drop what has been sent and was not taken."""
        # Without this the kernel keeps it, up to megabytes, for as long as the client holds out.
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def client_connection(scope: Any) -> ClientConnection | None:
    """Return what a request came in on; None under another server than ours, as in tests."""
    transport = transport_of(scope.get(SEND_KEY))
    return ClientConnection(transport) if transport is not None else None
