"""Enqueue mail, and list the mail that was kept instead of sent."""

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task, enqueue
from quart_upsun.mail.delivery import SEND_MAIL
from quart_upsun.mail.models import Mail

RETENTION = timedelta(days=30)


async def send_later(session: AsyncSession, kind: str, **data: Any) -> None:
    """Enqueue a mail, which is sent once the transaction is committed.

    Args:
        session: a session from `write()`.
        kind: the name of the composer.
        data: the data for the composer. It is stored, so it must not contain secrets.
    """
    await enqueue(session, SEND_MAIL, kind=kind, data=data, identity=secrets.token_hex(16))


async def list_kept_mails(
    session: AsyncSession, before: int | None = None, limit: int = 50
) -> Sequence[Mail]:
    """Return the mails that were kept instead of sent, newest first.

    Args:
        session: a session.
        before: the cursor: the last id of the previous page; None for the first page.
        limit: the maximum number of mails.
    """
    query = select(Mail)
    if before is not None:
        query = query.where(Mail.id < before)
    return (await session.scalars(query.order_by(Mail.id.desc()).limit(limit))).all()


async def delete_old_mails(running: JobContext) -> None:
    """Delete old kept mails."""
    old = Mail.created_at < func.now() - RETENTION
    await cleanup.delete_in_batches(running.database, cleanup.delete_oldest_statement(Mail.id, old))


CLEANUP = Schedule(
    Task("delete old mails", delete_old_mails, timeout=cleanup.TIMEOUT_SECONDS), "27 3 * * *"
)
