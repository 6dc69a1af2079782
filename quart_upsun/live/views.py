"""The answer that a browser's EventSource reads."""

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
RETRY_AFTER_SECONDS = 60  # seconds: browsers that have too many pages open do not close one at once
MAX_ID_DIGITS = 18  # of an id, at most: PostgreSQL's numbers have 19


async def stream(user_id: int, *, user_since: datetime | None = None) -> Response:
    """Answer with the events of a user, from now on or from where the client left off.

    For a view that knows who is asking. Where the client left off says `Last-Event-ID`, which a
    browser sends that comes back by itself, or `after` in the query, for a script that opens a new
    EventSource.

    A stream that begins sends `hello`, with the id from which on nothing is missed. One that comes
    back sends what has happened since, or `reset` if that is not known any more or too much: then
    the page has to be loaded again.

    No connection to the database is held, and none is needed to begin.

    Args:
        user_id: whose events.
        user_since: when the user was created, if that is known: the page of a new user then need
            not be loaded again for the first events.

    Raises:
        TooManyRequests: the user has too many streams open.
        ServiceUnavailable: the process has.
    """
    if current_toolkit().draining.is_set():
        # Another status would keep browsers from coming back, to another process.
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
    response.timeout = None  # Quart's own cuts streams after a minute, without a word
    return response


def last_event_id() -> int | None:
    """Return the id of the last event that the client knows of; None if it knows of none."""
    said = request.headers.get("Last-Event-ID", request.args.get("after", ""))
    return int(said) if said.isascii() and said.isdecimal() and len(said) <= MAX_ID_DIGITS else None


def _is_new(since: datetime | None) -> bool:
    """Tell whether a user is younger than the oldest events that are deleted."""
    return since is not None and since > datetime.now(UTC) - timedelta(days=RETENTION_DAYS)


def _response(body: str) -> Response:
    return Response(body, content_type=CONTENT_TYPE, headers={"Cache-Control": NO_STORE})
