"""The audit trail: what happened to an account, when, from where. Rows are only ever added."""

from collections.abc import Sequence
from typing import Any

from quart import has_request_context, request
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.security.models import AuditEvent


async def record(
    session: AsyncSession, event: str, user_id: Any, *, actor_id: int | None = None
) -> None:
    """Add an event, in the transaction of the change it tells of.

    Args:
        session: of `write()`.
        event: what happened.
        user_id: whose account; None if nobody's. May be a scalar subquery.
        actor_id: who did it, if it was another user.
    """
    client = request.remote_addr if has_request_context() else None
    await session.execute(
        insert(AuditEvent).values(kind=event, user_id=user_id, actor_id=actor_id, client=client)
    )


async def list_events(
    session: AsyncSession,
    *,
    user_id: int | None = None,
    kinds: Sequence[str] | None = None,
    except_kinds: Sequence[str] = (),
    before: int | None = None,
    limit: int,
) -> Sequence[AuditEvent]:
    """Return events, newest first.

    Args:
        session: for the query.
        user_id: of one user only.
        kinds: only of these kinds; None for all.
        except_kinds: but not of these.
        before: only those older than the one with this id.
        limit: how many at most.
    """
    query = select(AuditEvent).order_by(AuditEvent.id.desc()).limit(limit)
    if kinds is not None:
        query = query.where(AuditEvent.kind.in_(kinds))
    if except_kinds:
        query = query.where(AuditEvent.kind.not_in(except_kinds))
    if user_id is not None:
        query = query.where(AuditEvent.user_id == user_id)
    if before is not None:
        query = query.where(AuditEvent.id < before)
    return (await session.scalars(query)).all()
