"""Fetch the events that streams have not sent yet, with one statement for many streams."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

BATCH_SIZE = 64  # events of a user per query
MAX_REPLAYED_EVENTS = 500  # for a stream that resumes; after more missed events the page reloads


class Event(NamedTuple):
    """An event as it is stored; `data` is JSON."""

    id: int
    kind: str
    data: str


class StreamPosition(NamedTuple):
    """The position of a stream: the id of the last event that it has sent; None starts now."""

    user_id: int
    after: int | None
    is_new: bool = False
    """Whether the user is so new that none of their events has been deleted."""


class StreamStart(NamedTuple):
    """The state at the start of a stream."""

    newest: int
    """The id of the user's newest event; 0 if there is none."""
    missed: Sequence[Event] | None
    """The events after the position; None if there are too many or some have been deleted."""


_LATER = """
    LEFT JOIN LATERAL (
        SELECT id, kind, CAST(data AS text) AS data FROM live_events
        WHERE user_id = stream.user_id AND id > stream.after ORDER BY id LIMIT :limit
    ) AS event ON true
    ORDER BY stream.number, event.id
"""
_STREAMS = """
    unnest(CAST(:users AS bigint[]), CAST(:positions AS bigint[]), CAST(:new AS boolean[]))
    WITH ORDINALITY AS stream (user_id, after, is_new, number)
"""

# `complete`: no event after the position has been deleted. Events of a user are deleted in their
# order, and the newest never. So if the event at the position exists, all later ones do too. Before
# the first event, the user must be new.
_STARTS = text(
    f"""
    SELECT stream.number, newest.id AS newest,
        stream.after = newest.id
        OR EXISTS (
            SELECT FROM live_events WHERE user_id = stream.user_id AND id = stream.after
        )
        OR (stream.after = 0 AND stream.is_new) AS complete,
        event.id, event.kind, event.data
    FROM {_STREAMS}
    CROSS JOIN LATERAL (
        SELECT coalesce(max(id), 0) AS id FROM live_events WHERE user_id = stream.user_id
    ) AS newest
    {_LATER}
    """  # noqa: S608 only constants of this module
)
_EVENTS = text(
    f"SELECT stream.number, event.id, event.kind, event.data FROM {_STREAMS} {_LATER}"  # noqa: S608
)


async def fetch_starts(
    session: AsyncSession, positions: Sequence[StreamPosition]
) -> list[StreamStart]:
    """Return the start of a stream for each position."""
    rows = await session.execute(_STARTS, {**_columns(positions), "limit": MAX_REPLAYED_EVENTS + 1})
    answers = []
    for _, group in groupby(rows, key=lambda row: row.number):
        first, *more = group
        events = [Event(*row[3:]) for row in (first, *more) if row.id is not None]
        missed = events if first.complete and len(events) <= MAX_REPLAYED_EVENTS else None
        answers.append(StreamStart(first.newest, missed))
    return answers


async def fetch_events(
    session: AsyncSession, positions: Sequence[StreamPosition]
) -> list[list[Event]]:
    """Return the oldest events after each position, at most `BATCH_SIZE` per position."""
    rows = await session.execute(_EVENTS, {**_columns(positions), "limit": BATCH_SIZE})
    return [
        [Event(*row[1:]) for row in group if row.id is not None]
        for _, group in groupby(rows, key=lambda row: row.number)
    ]


def _columns(positions: Iterable[StreamPosition]) -> dict[str, list[int | None]]:
    users, afters, new = zip(*positions, strict=True)
    return {"users": list(users), "positions": list(afters), "new": list(new)}
