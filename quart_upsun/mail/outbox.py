"""Mail to be sent, and what became of it where none is sent."""

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnElement

from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import Running, Schedule, Task, enqueue, enqueue_many
from quart_upsun.logging import get_logger
from quart_upsun.mail.delivery import MAIL
from quart_upsun.mail.models import Mail

log = get_logger(__name__)

KEEP = timedelta(days=30)
# The release before looks every 15 seconds: what is overdue by this, nobody of it is there to send.
OVERDUE = timedelta(minutes=1)
AT_ONCE = 500  # rows


async def post(session: AsyncSession, kind: str, **data: Any) -> None:
    """Let a mail be sent once the transaction is committed, or never.

    Args:
        session: of `write()`.
        kind: the name of its composer.
        data: what the composer is given; no secrets, it may lie here for a while.
    """
    await enqueue(session, MAIL, kind=kind, data=data, identity=secrets.token_hex(16))


async def kept(session: AsyncSession, before: int | None = None, limit: int = 50) -> Sequence[Mail]:
    """Return the mails that were kept instead of sent, the newest first.

    And those that the release before has given up (with `error`); ours are given up as jobs.

    Args:
        session: for the query.
        before: the id of the last one on the page before; None for the first page.
        limit: how many at most.
    """
    query = select(Mail).where(Mail.due_at.is_(None))
    if before is not None:
        query = query.where(Mail.id < before)
    return (await session.scalars(query.order_by(Mail.id.desc()).limit(limit))).all()


async def try_again(session: AsyncSession, mail_id: int) -> bool:
    """Try once more to send what the release before has given up; False if there is no such mail.

    Args:
        session: of `write()`.
        mail_id: which.
    """
    return await _become_jobs(session, Mail.id == mail_id, Mail.error.is_not(None)) > 0


async def take_over(running: Running) -> None:
    """Send what the release before has left: it sends out of the table by itself.

    It is not asked for its given up mails: their time may be over, so somebody is to look first.
    """
    async with running.database.write() as session:
        overdue = select(Mail.id).where(Mail.due_at < func.now() - OVERDUE).limit(AT_ONCE)
        # A row that it has just taken is due later; one that we take is not there for it any more.
        count = await _become_jobs(session, Mail.id.in_(overdue.with_for_update(skip_locked=True)))
    if count:
        log.info("mails of the release before taken over", count=count)


async def forget_mails(running: Running) -> None:
    """Delete old mails that are kept, or were given up by the release before."""
    old = (Mail.created_at < func.now() - KEEP, Mail.due_at.is_(None))
    await cleanup.forget(running.database, cleanup.oldest(Mail.id, *old))


async def _become_jobs(session: AsyncSession, *which: ColumnElement[bool]) -> int:
    columns = (Mail.id, Mail.kind, Mail.data, Mail.created_at)
    rows = (await session.execute(delete(Mail).where(*which).returning(*columns))).all()
    if rows:
        await enqueue_many(
            session,
            MAIL,
            # The identity is the one that its attempts before have had.
            [
                {"kind": row.kind, "data": row.data, "identity": f"{row.id} {row.created_at}"}
                for row in rows
            ],
        )
    return len(rows)


SCHEDULES = (
    Schedule(Task("take over mails", take_over), "*/5 * * * *"),
    Schedule(Task("forget old mails", forget_mails, timeout=cleanup.TIMEOUT), "27 3 * * *"),
)
