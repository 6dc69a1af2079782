"""Publish events to a user's open pages, and delete old events."""

import json
import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.database.statements import Source, Statement, only_column
from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.live.models import LiveEvent
from quart_upsun.logging import get_logger

log = get_logger(__name__)

CHANNEL = "live"
RETENTION_DAYS = 1

# Bytes of JSON. An event says what has changed, and the page fetches the details. Each stream
# buffers an event until its client has read it.
MAX_EVENT_BYTES = 16 * 1024

KIND_PATTERN = re.compile(r"[a-z][a-z0-9_.:-]{0,39}")
HELLO, RESET = "hello", "reset"
# Used by the stream itself, or by EventSource in browsers.
RESERVED_KINDS = frozenset({HELLO, RESET, "open", "error", "message"})

# The first number of this module's advisory locks: "live" in ASCII.
LOCK_CLASS = 0x6C697665

CLEANUP_BATCH_SIZE = 1000  # rows per statement

# A stream resumes after an id. It misses no event only if all smaller ids of the same user are
# already committed. So publishers for a user hold an advisory lock from before the id is generated
# until the commit. The id and the time are computed for the row that the lock returns, so after the
# lock. The times therefore have the order of the ids; `now()`, the start of the transaction, would
# not.
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

# The newest event of each user is kept. A stream that resumes compares its id, and so knows that it
# has missed nothing, even after a long time without events.
_DELETE_OLD = text(
    """
    WITH deleted AS (
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
    SELECT count(*), max(created_at) FROM deleted
    """
)


SELECT_NEWEST: Statement[int] = Statement(
    select(func.max(LiveEvent.id)).where(LiveEvent.user_id == bindparam("user_id")), only_column
)


async def newest_event(source: Source, user_id: int) -> int:
    """Return the id of the user's newest event, from which a page listens; 0 if there is none."""
    return await SELECT_NEWEST.first(source, user_id=user_id) or 0


async def publish(session: AsyncSession, user_id: int, kind: str, **data: Any) -> None:
    """Publish an event to a user's open pages once the transaction is committed.

    Make it the last statement of the transaction, because other publishers for the same user wait
    for the commit. To publish for several users, use the order of their ids; otherwise two
    transactions can deadlock.

    Args:
        session: a session from `write()`.
        user_id: the id of an existing user.
        kind: the name of the event in the browser: lower-case letters, digits and `_.:-`.
        data: the data of the event, at most 16 KiB as JSON. It is stored for a day.

    Raises:
        ValueError: the kind is invalid or reserved, or the data is too large or not JSON.
    """
    if not KIND_PATTERN.fullmatch(kind) or kind in RESERVED_KINDS:
        raise ValueError(f"{kind!r} is not a valid kind of event")
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
    """Delete old events in batches, each in a transaction."""
    count = 0
    since: datetime | None = datetime(1970, 1, 1, tzinfo=UTC)
    while since is not None:
        # Starts where the last batch ended, so that kept rows are scanned only once.
        batch = {"days": RETENTION_DAYS, "since": since, "limit": CLEANUP_BATCH_SIZE}
        async with running.database.write() as session:
            deleted, since = (await session.execute(_DELETE_OLD, batch)).one()
        count += deleted
    if count:
        log.info("old rows deleted", table="live_events", count=count)


CLEANUP = Schedule(
    Task("delete old live events", delete_old_events, timeout=cleanup.TIMEOUT_SECONDS), "27 * * * *"
)
