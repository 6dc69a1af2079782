"""Queries and changes of accounts. The functions take a database session and plain values."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    bindparam,
    case,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import site
from app.user.audit_trail import Event
from app.user.models import UNIQUE_EMAIL, UNIQUE_USERNAME, Role, User
from quart_upsun.database import Base
from quart_upsun.database.statements import Source, Statement
from quart_upsun.mail import outbox
from quart_upsun.security import audit

# Ends all sessions of a user, and cancels an email change that one of them may have requested.
END_SESSIONS_VALUES: dict[str, Any] = {
    "session_version": User.session_version + 1,
    "pending_email": case((User.email.is_(None), User.pending_email)),
}
MAX_CLAIMS = 10  # unconfirmed accounts considered for one email address
_users = Base.metadata.tables[User.__tablename__]


class Member(NamedTuple):
    """What other members see of a user."""

    username: str
    created_at: datetime


SELECT_NEWEST = Statement(
    select(_users.c.username, _users.c.created_at)
    .where(_users.c.email.is_not(None), _users.c.deactivated_at.is_(None))
    .order_by(_users.c.id.desc())
    .limit(bindparam("count")),
    Member._make,
)


class AccountTakenError(Exception):
    """Another user has this username or email address.

    Attributes:
        field: `username` or `email`.
    """

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class SessionEndedError(Exception):
    """The user's session ended during the request. Nothing was changed."""


async def lock_user(session: AsyncSession, user: User) -> None:
    """Lock the row of the current user, so that changes of their logins happen one after another.

    Args:
        session: a session of `write()`.
        user: the user as the current session loaded them. After the lock, their password is still
            the current one, because a new password ends the session.

    Raises:
        SessionEndedError: the session of the user has ended; what it adds would outlive it.
    """
    current = (
        select(User.id).where(*_valid_session_conditions(user)).with_for_update(key_share=True)
    )
    if await session.scalar(current) is None:
        raise SessionEndedError


async def notify(session: AsyncSession, user: User, letter: str, **data: Any) -> None:
    """Send a security notice to the confirmed email address, if the user has one."""
    if user.email:
        await outbox.send_later(session, letter, to=user.email, username=user.username, **data)


async def create_user(
    session: AsyncSession,
    *,
    username: str,
    email: str,
    password_hash: str | None,
    should_confirm: bool = True,
) -> User:
    """Create a user with an unconfirmed email address.

    Does not check whether another account has the email address, so that registration does not
    reveal it. The first account to confirm an address gets it.

    Args:
        session: a session of `write()`.
        username: the username.
        email: the unconfirmed email address.
        password_hash: the hash of the password; None for a login with another provider only.
        should_confirm: whether to send the confirmation email.

    Raises:
        AccountTakenError: the username is taken. The unique index decides between concurrent
            requests.
    """
    user = User(username=username, pending_email=email, password_hash=password_hash)
    session.add(user)
    try:
        await session.flush()
    except IntegrityError as error:
        raise _translate_integrity_error(error) from None
    await audit.record(session, Event.REGISTERED, user.id)
    if should_confirm:
        await outbox.send_later(session, "confirm", user_id=user.id)
    return user


async def get_user(session: AsyncSession, user_id: int) -> User | None:
    return await session.scalar(select(User).where(User.id == user_id))


async def get_user_by_username(session: AsyncSession, username: str) -> User | None:
    """Return the user with this name (case-insensitive), or None."""
    return await session.scalar(select(User).where(func.lower(User.username) == username.lower()))


async def find_users_by_email(session: AsyncSession, email: str) -> Sequence[User]:
    """Return the active users of an email address (case-insensitive).

    This is the user who confirmed it, or else those who claim it, newest first.
    """
    address = email.lower()
    confirmed = select(User).where(func.lower(User.email) == address, User.deactivated_at.is_(None))
    if found := (await session.scalars(confirmed)).all():
        return found
    claims = (
        select(User)
        .where(
            func.lower(User.pending_email) == address,
            User.email.is_(None),
            User.deactivated_at.is_(None),
        )
        .order_by(User.id.desc())
        .limit(MAX_CLAIMS)
    )
    return (await session.scalars(claims)).all()


async def get_user_by_version(session: AsyncSession, user_id: int, version: int) -> User | None:
    """Return the active user, or None if all of their sessions were ended since `version`."""
    return await session.scalar(
        select(User).where(
            User.id == user_id, User.session_version == version, User.deactivated_at.is_(None)
        )
    )


async def confirm_email(session: AsyncSession, user_id: int, email: str) -> bool:
    """Confirm a pending email address; return False if it is no longer pending.

    Raises:
        AccountTakenError: another account has confirmed the address.
    """
    change = (
        update(User)
        .where(User.id == user_id, User.pending_email == email, User.deactivated_at.is_(None))
        .values(email=email, pending_email=None)
        .returning(User.id)
    )
    try:
        done = await session.scalar(change)
    except IntegrityError as error:
        raise _translate_integrity_error(error) from None
    if done:
        await audit.record(session, Event.CONFIRMED, user_id)
    return done is not None


async def change_username(session: AsyncSession, user: User, username: str) -> None:
    """Change the username.

    Raises:
        AccountTakenError: the username is taken.
        SessionEndedError: the session of the user has ended. The same applies to the functions
            below that take a `User`.
    """
    try:
        await _update_user(session, user, username=username)
    except IntegrityError as error:
        raise _translate_integrity_error(error) from None
    await audit.record(session, Event.NAME_CHANGED, user.id)


async def request_email_change(session: AsyncSession, user: User, email: str) -> None:
    """Store the new email address as pending, and email both the new and the old address."""
    await _update_user(session, user, pending_email=email)
    await audit.record(session, Event.EMAIL_CHANGE_REQUESTED, user.id)
    await outbox.send_later(session, "confirm", user_id=user.id)
    await notify(session, user, "address-change")


async def request_password_reset(session: AsyncSession, email: str) -> None:
    """Send a password reset email, if the email address has an account.

    The same statements run in both cases; the job that sends the email checks for an account. The
    audit event belongs to the user who confirmed the address. Users who only claim the address get
    no event, because its absence would reveal that someone else has confirmed it.
    """
    owner = select(User.id).where(func.lower(User.email) == email.lower()).scalar_subquery()
    await audit.record(session, Event.RESET_REQUESTED, owner)
    await outbox.send_later(session, "reset", email=email)


async def set_password(
    session: AsyncSession, user: User, *, password_hash: str, event: Event
) -> User:
    """Set the password, end all sessions, and return the updated user."""
    changed = await _update_user(session, user, password_hash=password_hash, **END_SESSIONS_VALUES)
    await audit.record(session, event, user.id)
    has_other_login = await site.can_log_in_without_password(session, user.id)
    await notify(session, user, "password-changed", has_other_login=has_other_login)
    return changed


async def replace_password_hash(session: AsyncSession, user_id: int, *, old: str, new: str) -> None:
    """Replace a password hash with a stronger hash of the same password."""
    await session.execute(
        update(User)
        # Skipped if the password has changed in the meantime.
        .where(User.id == user_id, User.password_hash == old)
        .values(password_hash=new)
    )


async def renew_session_version(session: AsyncSession, user: User) -> User:
    """End all sessions of the current user, and return the updated user for `renew_login()`."""
    return await _update_user(session, user, **END_SESSIONS_VALUES)


async def sign_out_everywhere(session: AsyncSession, user: User) -> None:
    """End all sessions of the current user."""
    await renew_session_version(session, user)
    await audit.record(session, Event.SESSIONS_ENDED, user.id)


async def delete_user(session: AsyncSession, user: User) -> None:
    """Delete an account. The audit trail keeps its events with the user id, but no name."""
    gone = delete(User).where(*_valid_session_conditions(user)).returning(User.id)
    if await session.scalar(gone) is None:
        raise SessionEndedError
    await audit.record(session, Event.DELETED, user.id)
    await notify(session, user, "deleted")


async def end_sessions(session: AsyncSession, user_id: int, *, actor_id: int) -> None:
    """End all sessions of another user."""
    await session.execute(update(User).where(User.id == user_id).values(**END_SESSIONS_VALUES))
    await audit.record(session, Event.SESSIONS_ENDED, user_id, actor_id=actor_id)


async def set_role(session: AsyncSession, user_id: int, role: Role) -> None:
    """Change the role of a user."""
    await session.execute(update(User).where(User.id == user_id).values(role=role))
    event = Event.PROMOTED if role == Role.ADMINISTRATOR else Event.DEMOTED
    await audit.record(session, event, user_id)


async def deactivate_user(
    session: AsyncSession, user_id: int, *, actor_id: int | None = None
) -> None:
    """Deactivate a user and end their sessions.

    Args:
        session: a session of `write()`.
        user_id: the user to deactivate.
        actor_id: the administrator, if one does it.
    """
    values = {"deactivated_at": func.now(), **END_SESSIONS_VALUES}
    await session.execute(update(User).where(User.id == user_id).values(**values))
    await audit.record(session, Event.DEACTIVATED, user_id, actor_id=actor_id)


async def reactivate_user(
    session: AsyncSession, user_id: int, *, actor_id: int | None = None
) -> None:
    """Reactivate a user. Ended sessions and revoked tokens are not restored."""
    await session.execute(update(User).where(User.id == user_id).values(deactivated_at=None))
    await audit.record(session, Event.REACTIVATED, user_id, actor_id=actor_id)


async def list_newest_users(source: Source, *, limit: int = 20) -> list[Member]:
    """Return the newest members, newest first.

    Includes only active users with a confirmed email address.
    """
    return await SELECT_NEWEST.rows(source, count=limit)


async def search_users(
    session: AsyncSession, *, prefix: str = "", before: int | None = None, limit: int
) -> Sequence[User]:
    """Return users, newest first.

    Args:
        session: a database session.
        prefix: the beginning of the username or email address, case-insensitive.
        before: only users whose id is lower; the cursor of the previous page.
        limit: the maximum number of users.
    """
    query = select(User).order_by(User.id.desc()).limit(limit)
    if prefix:
        start = prefix.lower()
        columns = map(func.lower, (User.username, User.email, User.pending_email))
        query = query.where(or_(*(each.startswith(start, autoescape=True) for each in columns)))
    if before is not None:
        query = query.where(User.id < before)
    return (await session.scalars(query)).all()


def _valid_session_conditions(user: User) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions under which the session that loaded `user` is still valid.

    The body of a request can take long to arrive, and the session may end in the meantime.
    """
    return (
        User.id == user.id,
        User.session_version == user.session_version,
        User.deactivated_at.is_(None),
    )


async def _update_user(session: AsyncSession, user: User, **values: Any) -> User:
    """Update the row of the current user, and return it.

    Raises:
        SessionEndedError: the user's session has ended.
    """
    change = update(User).where(*_valid_session_conditions(user)).values(**values).returning(User)
    changed = await session.scalar(change)
    if changed is None:
        raise SessionEndedError
    return changed


def _translate_integrity_error(error: IntegrityError) -> Exception:
    """Return AccountTakenError for a unique index of users, or else the error itself."""
    index = getattr(error.driver_exception, "constraint_name", None)
    fields = {UNIQUE_USERNAME.name: "username", UNIQUE_EMAIL.name: "email"}
    return AccountTakenError(fields[index]) if index in fields else error
