"""Deletion of accounts whose email address was never confirmed, which frees their usernames."""

import asyncio
from datetime import timedelta

from sqlalchemy import delete, exists, func, select

from app.extensions import site
from app.user.audit_trail import Event
from app.user.models import Role, User
from quart_upsun.database import Base
from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.logging import get_logger
from quart_upsun.security import audit
from quart_upsun.security.models import AuditEvent

log = get_logger(__name__)

RETENTION = timedelta(days=30)


async def delete_unconfirmed_accounts(running: JobContext) -> None:
    """Delete old accounts that have no confirmed email address, no recent login and no content.

    Content is any row that a feature exports with the user's data, or a valid access token.
    """
    old = func.now() - RETENTION
    used = exists().where(
        AuditEvent.user_id == User.id, AuditEvent.kind == Event.LOGGED_IN, AuditEvent.at >= old
    )
    conditions = [
        *(User.email.is_(None), User.created_at < old, User.deactivated_at.is_(None)),
        User.role == Role.MEMBER,
        ~used,
        *(~condition() for condition in site.in_use_conditions),
    ]
    tables = [
        name
        for section in site.personal_data
        if section.is_account_in_use
        for name in section.tables
    ]
    for table in (Base.metadata.tables[name] for name in tables):
        if "user_id" in table.columns:
            conditions.append(~exists().where(table.c.user_id == User.id))
    query = select(User.id).where(*conditions).order_by(User.id).limit(cleanup.BATCH_SIZE)
    count = 0
    while True:
        async with running.database.write() as session:
            ids = (await session.scalars(query.with_for_update(skip_locked=True))).all()
            # The lock blocks new content. Only a second statement sees content that was committed
            # just before the lock.
            gone = delete(User).where(User.id.in_(ids), *conditions).returning(User.id)
            for user_id in (await session.scalars(gone)).all():
                await audit.record(session, Event.DELETED, user_id)
                count += 1
        if len(ids) < cleanup.BATCH_SIZE:
            break
        await asyncio.sleep(0.05)  # yield the database to other work
    if count:
        log.info("unconfirmed accounts deleted", count=count)


DELETE_UNCONFIRMED_ACCOUNTS = Schedule(
    Task(
        "remove unconfirmed accounts", delete_unconfirmed_accounts, timeout=cleanup.TIMEOUT_SECONDS
    ),
    "7 4 * * *",
)
