"""The audit trail: what happened to an account, when, from where. Rows are only ever added."""

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from quart import has_request_context, request
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.security.models import AuditEvent

View = TypeVar("View", bound=Callable[..., Awaitable[Any]])


class Event(StrEnum):
    """What is worth remembering. The values lie in the database, and are shown as they are."""

    REGISTERED = "registered"
    CONFIRMED = "address confirmed"
    LOGGED_IN = "logged in"
    LOGIN_FAILED = "login failed"
    LOGGED_OUT = "logged out"
    RESET_REQUESTED = "password reset requested"
    PASSWORD_RESET = "password reset"
    PASSWORD_CHANGED = "password changed"
    NAME_CHANGED = "name changed"
    EMAIL_CHANGE_REQUESTED = "change of address requested"
    SESSIONS_ENDED = "all sessions ended"
    INVITED = "somebody invited"
    DELETED = "account deleted"
    PROMOTED = "promoted to administrator"
    DEMOTED = "demoted to member"
    RESET_LINK_MADE = "reset link made"
    DEACTIVATED = "deactivated"
    REACTIVATED = "reactivated"
    TOKEN_CREATED = "access token created"
    TOKEN_DELETED = "access token deleted"


def audited(*events: Event) -> Callable[[View], View]:
    """Declare which events a view records."""

    def decorate(view: View) -> View:
        view.audit = events  # type: ignore[attr-defined]
        return view

    return decorate


def unaudited(reason: str) -> Callable[[View], View]:
    """Declare that a view that changes something records nothing, and why."""

    def decorate(view: View) -> View:
        view.audit = reason  # type: ignore[attr-defined]
        return view

    return decorate


async def record(
    session: AsyncSession, event: Event, user_id: Any, *, actor_id: int | None = None
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


async def latest(
    session: AsyncSession,
    *,
    user_id: int | None = None,
    failures: bool | None = None,
    before: int | None = None,
    limit: int,
) -> Sequence[AuditEvent]:
    """Return events, newest first.

    Args:
        session: for the query.
        user_id: of one user only.
        failures: only failed logins, or all but these: strangers can make any number of them.
        before: only those older than the one with this id.
        limit: how many at most.
    """
    query = select(AuditEvent).order_by(AuditEvent.id.desc()).limit(limit)
    if failures is not None:
        query = query.where((AuditEvent.kind == Event.LOGIN_FAILED) == failures)
    if user_id is not None:
        query = query.where(AuditEvent.user_id == user_id)
    if before is not None:
        query = query.where(AuditEvent.id < before)
    return (await session.scalars(query)).all()
