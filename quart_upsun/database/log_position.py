"""Positions in PostgreSQL's write-ahead log: what a request's reads from the replica must include.

A position is the number of bytes since the beginning of the log, an LSN:
https://www.postgresql.org/docs/18/datatype-pg-lsn.html
"""

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, ScalarSelect, func, select

from quart_upsun.database.base import Base
from quart_upsun.database.models import LogPosition

MAX_POSITION = 2**63 - 1
"""Beyond the log of any server: such reads go to the primary."""

POSITION_SECONDS = 15
"""How long a position is needed. A replica that is used has replayed everything that is older, see
`quart_upsun.database.replica`."""

# The end of the log of the primary. PostgreSQL reports where the next record will begin, which at
# the start of a page is behind the page's header of 24 or 40 bytes. A standby that has replayed
# everything is in front of it, for up to 15 seconds if nobody writes. Between the start of a page
# and the end of its header there is no record.
SELECT_POSITION = """
SELECT CASE WHEN log.flushed % CAST(current_setting('wal_block_size') AS bigint) = 0
    AND log.next - log.flushed <= 40 THEN log.flushed ELSE log.next END
FROM (
    SELECT CAST(pg_current_wal_flush_lsn() - '0/0' AS bigint) AS flushed,
        CAST(pg_current_wal_insert_lsn() - '0/0' AS bigint) AS next
) AS log
"""

# The position is taken after the commit. Of two requests at the same time the later one counts.
RECORD_POSITION = f"""
INSERT INTO log_positions AS known (user_id, position, written_at)
VALUES ($1, ({SELECT_POSITION}), now())
ON CONFLICT (user_id) DO UPDATE
SET position = greatest(known.position, excluded.position), written_at = excluded.written_at
"""  # noqa: S608 a constant
DELETE_EXPIRED = f"""
DELETE FROM log_positions WHERE written_at < now() - interval '{POSITION_SECONDS} seconds'
"""  # noqa: S608 a constant


@dataclass(slots=True)
class Reads:
    """What the reads of a request must include.

    Attributes:
        position: the replica must have replayed the log up to here.
        has_written: whether the request has committed a change. It then reads from the primary.
    """

    position: int = 0
    has_written: bool = False

    def require(self, position: int) -> None:
        """Let later reads of this request include a position."""
        self.position = max(self.position, position)


current_reads: ContextVar[Reads | None] = ContextVar("current_reads", default=None)
"""None outside of requests, where all reads go to the primary: nobody knows what a job or a task
of the process must see."""


def require_position(position: int) -> None:
    """Let later reads of the current request include a position."""
    reads = current_reads.get()
    if reads is not None:
        reads.require(position)


def recent_position(user_id: ColumnElement[int]) -> ScalarSelect[int]:
    """Return the SQL for the position of a user's last change with an access token.

    It is NULL if there was none within `POSITION_SECONDS`.
    """
    positions = Base.metadata.tables[LogPosition.__tablename__]
    limit = func.now() - timedelta(seconds=POSITION_SECONDS)
    return (
        select(positions.c.position)
        .where(positions.c.user_id == user_id, positions.c.written_at > limit)
        .scalar_subquery()
    )
