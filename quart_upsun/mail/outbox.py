"""Mail to be sent, and what became of it where none is sent."""

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import Running, Schedule, Task, enqueue
from quart_upsun.mail.delivery import MAIL
from quart_upsun.mail.models import Mail

KEEP = timedelta(days=30)


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

    Args:
        session: for the query.
        before: the id of the last one on the page before; None for the first page.
        limit: how many at most.
    """
    query = select(Mail)
    if before is not None:
        query = query.where(Mail.id < before)
    return (await session.scalars(query.order_by(Mail.id.desc()).limit(limit))).all()


async def forget_mails(running: Running) -> None:
    """Delete old mails that are kept."""
    old = Mail.created_at < func.now() - KEEP
    await cleanup.forget(running.database, cleanup.oldest(Mail.id, old))


FORGET = Schedule(Task("forget old mails", forget_mails, timeout=cleanup.TIMEOUT), "27 3 * * *")
