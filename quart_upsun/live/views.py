"""The response for a browser's EventSource."""

import random
from datetime import UTC, datetime, timedelta

from quart import Response, request
from werkzeug.exceptions import ServiceUnavailable, TooManyRequests

from quart_upsun.current import current_toolkit
from quart_upsun.live import hub
from quart_upsun.live.connection import client_connection
from quart_upsun.live.events import RETENTION_DAYS
from quart_upsun.live.stream import RETRY_MILLISECONDS
from quart_upsun.policy import NO_STORE

CONTENT_TYPE = "text/event-stream; charset=utf-8"
RETRY_AFTER_SECONDS = 60  # too many open pages: one is not closed at once
MAX_ID_DIGITS = 18  # a BIGINT has up to 19


async def stream(user_id: int, *, user_since: datetime | None = None) -> Response:
    """Return the stream of a user's events, from now on or after the client's last event.

    The view must check who the user is. The last event comes from `Last-Event-ID`, which a browser
    sends when it reconnects, or from `after` in the query, for a script that opens a new
    EventSource.

    A new stream starts with `hello`, whose id is the position from which no event is missed. A
    stream that resumes starts with the missed events, or with `reset` if there are too many or some
    have been deleted; then the page must reload.

    The stream holds no database connection, and needs none to start.

    Args:
        user_id: the id of the user.
        user_since: when the user was created, if known. A new user's page then does not have to
            reload for the first events.

    Raises:
        TooManyRequests: the user has too many open streams.
        ServiceUnavailable: the process has too many open streams.
    """
    if current_toolkit().draining.is_set():
        # After any other status, browsers would not reconnect.
        return _response(f"retry: {random.randint(*RETRY_MILLISECONDS)}\n\n")  # noqa: S311
    if request.method == "HEAD":
        return _response("")
    try:
        body = current_toolkit().live.open(
            user_id, last_event_id(), client_connection(request.scope), is_new=_is_new(user_since)
        )
    except hub.TooManyUserStreamsError:
        raise TooManyRequests(retry_after=RETRY_AFTER_SECONDS) from None
    except hub.TooManyStreamsError:
        raise ServiceUnavailable(retry_after=RETRY_AFTER_SECONDS) from None
    response = Response(body, content_type=CONTENT_TYPE, headers={"Cache-Control": NO_STORE})
    response.timeout = None  # Quart's default ends streams after a minute
    return response


def last_event_id() -> int | None:
    """Return the id of the last event that the client has received; None if it sends none."""
    value = request.headers.get("Last-Event-ID", request.args.get("after", ""))
    is_id = value.isascii() and value.isdecimal() and len(value) <= MAX_ID_DIGITS
    return int(value) if is_id else None


def _is_new(since: datetime | None) -> bool:
    """Tell whether a user is so new that none of their events has been deleted."""
    return since is not None and since > datetime.now(UTC) - timedelta(days=RETENTION_DAYS)


def _response(body: str) -> Response:
    return Response(body, content_type=CONTENT_TYPE, headers={"Cache-Control": NO_STORE})
