"""Telling a user's open pages something, and forgetting what nobody comes back for."""

import json
import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.database.statements import Source, Statement
from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.live.models import LiveEvent
from quart_upsun.logging import get_logger

log = get_logger(__name__)

CHANNEL = "live"
RETENTION_DAYS = 1

# Bytes of JSON. An event says what has changed, and a page that wants more of it asks for it: what
# is published is held for each stream until its client has read it.
MAX_EVENT_BYTES = 16 * 1024

KIND_PATTERN = re.compile(r"[a-z][a-z0-9_.:-]{0,39}")
HELLO, RESET = "hello", "reset"
# What the stream itself says, and what browsers give to the same listeners.
RESERVED_KINDS = frozenset({HELLO, RESET, "open", "error", "message"})

# The first number of this module's advisory locks: "live" in ASCII.
LOCK_CLASS = 0x6C697665

CLEANUP_BATCH_SIZE = 1000  # rows of one statement

# Who resumes after an id has missed nothing only if every smaller id of the same user was committed
# before. So publishers of one user take turns, from before the id is drawn until the commit. The
# statement guarantees it: the id and the time are computed for the row that the lock yields, so not
# before it. The times are in the order of the ids for the same reason, which `now()`, the beginning
# of the transaction, would not be.
_PUBLISH = text(
    """
    WITH turn AS MATERIALIZED (
        SELECT pg_advisory_xact_lock(:lock_class, hashint8(CAST(:user_id AS bigint)))
    )
    INSERT INTO live_events (user_id, kind, data, created_at)
    SELECT CAST(:user_id AS bigint), :kind, CAST(:data AS jsonb), clock_timestamp() FROM turn
    RETURNING pg_notify(:channel, CAST(user_id AS text))
    """
)

# The newest event of each user stays: by its id a stream that was away knows that it has missed
# nothing, however long nothing has happened.
_DELETE_OLD = text(
    """
    WITH forgotten AS (
        DELETE FROM live_events WHERE id = ANY (ARRAY(
            SELECT id FROM live_events AS old
            WHERE created_at < now() - make_interval(days => :days) AND created_at >= :since
            AND EXISTS (
                SELECT FROM live_events AS later
                WHERE later.user_id = old.user_id AND later.id > old.id
            )
            ORDER BY created_at LIMIT :limit
        ))
        RETURNING created_at
    )
    SELECT count(*), max(created_at) FROM forgotten
    """
)


SELECT_NEWEST: Statement[int] = Statement(
    select(func.max(LiveEvent.id)).where(LiveEvent.user_id == bindparam("user_id")),
    lambda values: next(iter(values)) or 0,
)


async def newest_event(source: Source, user_id: int) -> int:
    """Return the id of the user's newest event, after which a page listens; 0 if there is none."""
    (newest,) = await SELECT_NEWEST.rows(source, user_id=user_id)
    return newest


async def publish(session: AsyncSession, user_id: int, kind: str, **data: Any) -> None:
    """Tell a user's open pages something, once the transaction is committed, or never.

    As the last statement of its transaction: until the commit, whoever publishes for the same user
    waits. Who publishes for several users does it in the order of their ids; two transactions that
    do it the other way round would wait for each other.

    Args:
        session: of `write()`.
        user_id: whose pages; a user that exists.
        kind: the name of the event in the browser: small letters, digits and `_.:-`.
        data: what it says, as JSON of at most 16 KiB; it is kept for a day.

    Raises:
        ValueError: the kind is none or taken, or the data are too large or not JSON.
    """
    if not KIND_PATTERN.fullmatch(kind) or kind in RESERVED_KINDS:
        raise ValueError(f"{kind!r} cannot be the kind of an event")
    written = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if len(written.encode()) > MAX_EVENT_BYTES:
        raise ValueError(f"an event of the kind {kind!r} is larger than {MAX_EVENT_BYTES} bytes")
    await session.execute(
        _PUBLISH,
        {
            "lock_class": LOCK_CLASS,
            "user_id": user_id,
            "kind": kind,
            "data": written,
            "channel": CHANNEL,
        },
    )


async def delete_old_events(running: JobContext) -> None:
    """Delete events that nobody comes back for, a batch in each transaction."""
    count = 0
    since: datetime | None = datetime(1970, 1, 1, tzinfo=UTC)
    while since is not None:
        # From where the last batch ended: what stays is looked at once, not with every batch.
        batch = {"days": RETENTION_DAYS, "since": since, "limit": CLEANUP_BATCH_SIZE}
        async with running.database.write() as session:
            deleted, since = (await session.execute(_DELETE_OLD, batch)).one()
        count += deleted
    if count:
        log.info("old rows deleted", table="live_events", count=count)


CLEANUP = Schedule(
    Task("forget old events", delete_old_events, timeout=cleanup.TIMEOUT_SECONDS), "27 * * * *"
)
