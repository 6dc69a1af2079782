"""The audit trail: an append-only log of security events of accounts."""

from collections.abc import Sequence
from typing import Any

from quart import has_request_context, request
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.security.models import AuditEvent


async def record(
    session: AsyncSession, event: str, user_id: Any, *, actor_id: int | None = None
) -> None:
    """Record an audit event in the same transaction as the change.

    The client's IP address is recorded, too, if there is a request.

    Args:
        session: a session of `write()`.
        event: the kind of event, at most 40 characters.
        user_id: the account, or None. May be a scalar subquery.
        actor_id: the user who made the change, if it is another user.
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
    """List audit events, newest first.

    Args:
        session: a session of `read()` or `write()`.
        user_id: only events of this account.
        kinds: only events of these kinds. None for all kinds.
        except_kinds: no events of these kinds.
        before: a cursor for pagination: only events older than the one with this id.
        limit: the maximum number of events.
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
