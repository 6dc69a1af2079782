"""What streams have yet to be told: one statement for all that ask at the same time."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

BATCH_SIZE = 64  # events of one user in one answer
MAX_REPLAYED_EVENTS = (
    500  # events that a stream that comes back is told; after more its page reloads
)


class Event(NamedTuple):
    """An event as it is stored; `data` is JSON."""

    id: int
    kind: str
    data: str


class StreamPosition(NamedTuple):
    """Where a stream stands: it has been told everything up to `after`; None begins now."""

    user_id: int
    after: int | None
    is_new: bool = False
    """Whether the user is so new that nothing of theirs was deleted yet."""


class StreamStart(NamedTuple):
    """What a stream begins with."""

    newest: int
    """The id of the user's newest event; 0 if there never was one."""
    missed: Sequence[Event] | None
    """What has happened since; None if that is too much, or not known any more."""


_LATER = """
    LEFT JOIN LATERAL (
        SELECT id, kind, CAST(data AS text) AS data FROM live_events
        WHERE user_id = place.user_id AND id > place.after ORDER BY id LIMIT :limit
    ) AS event ON true
    ORDER BY place.number, event.id
"""
_PLACES = """
    unnest(CAST(:users AS bigint[]), CAST(:positions AS bigint[]), CAST(:new AS boolean[]))
    WITH ORDINALITY AS place (user_id, after, is_new, number)
"""

# `complete`: nothing that came after the place has been forgotten. An event is forgotten after all
# older ones of its user, and the newest never; so everything after one that is still there is
# there, too. Before the first event, the user must be new.
_OPENINGS = text(
    f"""
    SELECT place.number, newest.id AS newest,
        place.after = newest.id
        OR EXISTS (
            SELECT FROM live_events WHERE user_id = place.user_id AND id = place.after
        )
        OR (place.after = 0 AND place.is_new) AS complete,
        event.id, event.kind, event.data
    FROM {_PLACES}
    CROSS JOIN LATERAL (
        SELECT coalesce(max(id), 0) AS id FROM live_events WHERE user_id = place.user_id
    ) AS newest
    {_LATER}
    """  # noqa: S608 only parts of this module
)
_EVENTS = text(
    f"SELECT place.number, event.id, event.kind, event.data FROM {_PLACES} {_LATER}"  # noqa: S608
)


async def fetch_starts(
    session: AsyncSession, places: Sequence[StreamPosition]
) -> list[StreamStart]:
    """Return for each place what a stream that comes back there begins with."""
    rows = await session.execute(_OPENINGS, {**_columns(places), "limit": MAX_REPLAYED_EVENTS + 1})
    answers = []
    for _, group in groupby(rows, key=lambda row: row.number):
        first, *more = group
        events = [Event(*row[3:]) for row in (first, *more) if row.id is not None]
        missed = events if first.complete and len(events) <= MAX_REPLAYED_EVENTS else None
        answers.append(StreamStart(first.newest, missed))
    return answers


async def fetch_events(
    session: AsyncSession, places: Sequence[StreamPosition]
) -> list[list[Event]]:
    """Return for each place the oldest events after it, at most `BATCH_SIZE`."""
    rows = await session.execute(_EVENTS, {**_columns(places), "limit": BATCH_SIZE})
    return [
        [Event(*row[1:]) for row in group if row.id is not None]
        for _, group in groupby(rows, key=lambda row: row.number)
    ]


def _columns(places: Iterable[StreamPosition]) -> dict[str, list[int | None]]:
    users, positions, new = zip(*places, strict=True)
    return {"users": list(users), "positions": list(positions), "new": list(new)}
