"""Live pages with server-sent events.

`publish` sends an event to all open pages of a user. A view returns `views.stream`, which resumes
after the last event that the client has received.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.live.events import newest_event, publish
    from quart_upsun.live.hub import Hub, TooManyStreamsError, TooManyUserStreamsError

__all__ = ["Hub", "TooManyStreamsError", "TooManyUserStreamsError", "newest_event", "publish"]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("events", "hub"))
