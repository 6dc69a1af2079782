"""Private APIs of Hypercorn 0.18."""

import asyncio
from typing import Any

import h11
import hypercorn.protocol
from hypercorn.events import RawData
from hypercorn.protocol.h11 import H11Protocol


def transport_of(send: Any) -> asyncio.WriteTransport | None:
    """Return the transport of a request's connection, or None if the server is not Hypercorn.

    ASGI cannot abort a connection, and a stream cannot be ended in another way if its client does
    not read. The transport is reached through Hypercorn's stream, protocol and TCP server.

    Args:
        send: the ASGI `send` callable that the server passes to the application.
    """
    try:
        transport = send.__self__.send.__self__.send.__self__.writer.transport
    except AttributeError:
        return None
    return transport if isinstance(transport, asyncio.WriteTransport) else None


class CoalescingProtocol(H11Protocol):
    """An HTTP/1.1 protocol that sends the headers and the first part of the body in one write.

    Hypercorn writes headers, body and an empty end separately. Each write is a system call, and
    usually a packet. Headers without a Content-Length are sent at once, because the first event of
    a stream may take long.
    """

    _head = b""

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response) and any(
            name == b"content-length" for name, _ in event.headers
        ):
            self._head = data or b""
            return
        data = self._head + (data or b"")
        self._head = b""
        if data:
            await self.send(RawData(data))


def coalesce_writes() -> None:
    """Make Hypercorn use `CoalescingProtocol` for all new connections."""
    hypercorn.protocol.H11Protocol = CoalescingProtocol  # type: ignore[attr-defined]
