"""Hypercorn 0.18."""

import asyncio
from typing import Any


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
