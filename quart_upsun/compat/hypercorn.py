"""Hypercorn 0.18."""

import asyncio
from typing import Any

import h11
import hypercorn.protocol
from hypercorn.events import RawData
from hypercorn.protocol.h11 import H11Protocol


def transport_of(send: Any) -> asyncio.WriteTransport | None:
    """Return the transport of the connection that a request came in on.

    ASGI has no way to give a connection up, and a stream whose client does not read cannot be ended
    otherwise. The way leads through Hypercorn's stream, protocol and TCP server.

    Args:
        send: as Hypercorn gives it to the application; None is returned for any other.
    """
    try:
        transport = send.__self__.send.__self__.send.__self__.writer.transport
    except AttributeError:
        return None
    return transport if isinstance(transport, asyncio.WriteTransport) else None


class CoalescingProtocol(H11Protocol):
    """Sends the head of a response together with what follows it, in one write.

    Hypercorn writes the head, the body and an empty end one after the other; each write is a system
    call and mostly a packet. A head without a length is sent at once: a stream's first event
    may be a long time coming.
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
    """Let every connection that Hypercorn accepts from now on use `CoalescingProtocol`."""
    hypercorn.protocol.H11Protocol = CoalescingProtocol  # type: ignore[attr-defined]
