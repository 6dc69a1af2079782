"""Private APIs of Hypercorn 0.18."""

import asyncio
from typing import Any


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
