"""What is to be sent: written in the transaction of the change it belongs to."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quart import current_app, has_app_context
from sqlalchemy import event, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app.mail.models import Mail


@dataclass(frozen=True)
class Letter:
    """A mail before it is rendered: a template of `templates/mail/`, and what it needs."""

    to: str
    template: str
    context: dict[str, Any] = field(default_factory=dict)


# Looks up what a mail of one kind needs, when it is sent; None if there is nothing to send now.
Composer = Callable[[AsyncSession, dict[str, Any]], Awaitable[Letter | None]]
Composers = Mapping[str, Composer]


async def post(session: AsyncSession, kind: str, **data: Any) -> None:
    """Put a mail into the outbox: it is sent once the transaction is committed, or never.

    Args:
        session: of `write()`.
        kind: the name of its composer.
        data: what the composer is given; no secrets, it may lie here for a while.
    """
    await session.execute(insert(Mail).values(kind=kind, data=data))
    # Without an application around, as in a script, a server finds it when it looks next.
    if has_app_context() and not session.info.get("wakes_mail"):
        session.info["wakes_mail"] = True
        wake: Callable[[], None] = current_app.extensions["mail"].wake

        @event.listens_for(session.sync_session, "after_commit")
        def committed(session: Session) -> None:
            if not session.in_nested_transaction():  # the end of a savepoint is none of the change
                wake()


async def kept_and_failed(
    session: AsyncSession, before: int | None = None, limit: int = 50
) -> Sequence[Mail]:
    """Return the mails that somebody should look at, the newest first.

    These are the ones that were kept instead of sent (with `message`), were given up (no `due_at`,
    with `error`), or wait for another attempt (both).

    Args:
        session: for the query.
        before: the id of the last one on the page before; None for the first page.
        limit: how many at most.
    """
    query = select(Mail).where(or_(Mail.due_at.is_(None), Mail.error.is_not(None)))
    if before is not None:
        query = query.where(Mail.id < before)
    return (await session.scalars(query.order_by(Mail.id.desc()).limit(limit))).all()


async def try_again(session: AsyncSession, mail_id: int) -> bool:
    """Make a mail that was given up or waits for another attempt due now.

    Returns False if there is none, if it was kept, or while it is being sent.

    Args:
        session: of `write()`.
        mail_id: which.
    """
    again = (
        update(Mail)
        .where(Mail.id == mail_id, Mail.error.is_not(None))
        .values(attempts=0, due_at=func.now())
        .returning(Mail.id)
    )
    return await session.scalar(again) is not None
