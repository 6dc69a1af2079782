"""What is done with accounts: functions of a session and plain values."""

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

from app.user.audit_trail import Event
from app.user.models import UNIQUE_EMAIL, UNIQUE_USERNAME, Role, User
from quart_upsun.database import Base
from quart_upsun.database.statements import Source, Statement
from quart_upsun.mail import outbox
from quart_upsun.security import audit

# Built once: these run with nearly every request of a member, and building them took longer than
# the database takes to answer.
_users = Base.metadata.tables[User.__tablename__]
SELECT_BY_SESSION = Statement(
    select(_users).where(
        _users.c.id == bindparam("user_id"),
        _users.c.session_version == bindparam("version"),
        _users.c.deactivated_at.is_(None),
    ),
    lambda values: User(**dict(zip(_users.c.keys(), values, strict=True))),
)
# What ends every session of a user, and with them an address that one of them has asked for.
END_SESSIONS_VALUES: dict[str, Any] = {
    "session_version": User.session_version + 1,
    "pending_email": case((User.email.is_(None), User.pending_email)),
}
MAX_CLAIMS = 10  # of one address that are looked at


class Member(NamedTuple):
    """A user as other members see one."""

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
    """Another user has this user name or address.

    Attributes:
        field: `username` or `email`.
    """

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class SessionEndedError(Exception):
    """The session that asks was ended while it did: nothing was changed."""


async def create_user(
    session: AsyncSession,
    *,
    username: str,
    email: str,
    password_hash: str,
    should_confirm: bool = True,
) -> User:
    """Add a user whose address is still to be confirmed.

    Whether another account has the address is not looked at, so nobody learns it here: the first
    to confirm it has it.

    Args:
        session: of `write()`.
        username: its name.
        email: the address it claims.
        password_hash: of its password.
        ask: whether to post the mail that asks for the confirmation.

    Raises:
        Taken: the name; the database's unique index decides, so of two who ask at once one is
            refused.
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
    """Find a user by name, whatever the case."""
    return await session.scalar(select(User).where(func.lower(User.username) == username.lower()))


async def find_users_by_email(session: AsyncSession, email: str) -> Sequence[User]:
    """Find who can be reached at an address, whatever the case.

    The one user who has confirmed it; without one, those who claim it, the newest first.
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


async def get_user_by_session(source: Source, user_id: int, version: int) -> User | None:
    """Find the user of a login cookie; None once the cookie's session was ended."""
    found = await SELECT_BY_SESSION.rows(source, user_id=user_id, version=version)
    return found[0] if found else None


async def confirm_email(session: AsyncSession, user_id: int, email: str) -> bool:
    """Make a pending address the user's own; False if it is not pending any more.

    Raises:
        Taken: another account was quicker.
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
    """Give a user another name.

    Raises:
        Taken: somebody has it.
        SessionEnded: as everywhere below, where it is the user who asks.
    """
    try:
        await _update_user(session, user, username=username)
    except IntegrityError as error:
        raise _translate_integrity_error(error) from None
    await audit.record(session, Event.NAME_CHANGED, user.id)


async def request_email_change(session: AsyncSession, user: User, email: str) -> None:
    """Remember the address a user wants; ask there whether it is theirs, and tell the old one."""
    await _update_user(session, user, pending_email=email)
    await audit.record(session, Event.EMAIL_CHANGE_REQUESTED, user.id)
    await outbox.send_later(session, "confirm", user_id=user.id)
    if user.email:
        await outbox.send_later(session, "address-change", to=user.email, username=user.username)


async def request_password_reset(session: AsyncSession, email: str) -> None:
    """Post the mail with which a forgotten password is replaced, if there is an account.

    The same statements run whether there is one: that is found out when the mail is sent. The event
    belongs to who has confirmed the address: one who only claims it would learn from its absence
    that somebody else has.
    """
    owner = select(User.id).where(func.lower(User.email) == email.lower()).scalar_subquery()
    await audit.record(session, Event.RESET_REQUESTED, owner)
    await outbox.send_later(session, "reset", email=email)


async def set_password(
    session: AsyncSession, user: User, *, password_hash: str, event: Event
) -> User:
    """Replace the password and end all sessions; return the user as it is now."""
    changed = await _update_user(session, user, password_hash=password_hash, **END_SESSIONS_VALUES)
    await audit.record(session, event, user.id)
    if user.email:
        await outbox.send_later(session, "password-changed", to=user.email, username=user.username)
    return changed


async def replace_password_hash(session: AsyncSession, user_id: int, *, old: str, new: str) -> None:
    """Replace a password hash by a stronger one of the same password."""
    await session.execute(
        update(User)
        # Not if the password was changed in the meantime.
        .where(User.id == user_id, User.password_hash == old)
        .values(password_hash=new)
    )


async def sign_out_everywhere(session: AsyncSession, user: User) -> None:
    """End all sessions of the user who asks."""
    await _update_user(session, user, **END_SESSIONS_VALUES)
    await audit.record(session, Event.SESSIONS_ENDED, user.id)


async def delete_user(session: AsyncSession, user: User) -> None:
    """Delete an account. The audit trail keeps what happened to its number, and no name."""
    gone = delete(User).where(*_valid_session_conditions(user)).returning(User.id)
    if await session.scalar(gone) is None:
        raise SessionEndedError
    await audit.record(session, Event.DELETED, user.id)
    if user.email:
        await outbox.send_later(session, "deleted", to=user.email, username=user.username)


async def end_sessions(session: AsyncSession, user_id: int, *, actor_id: int) -> None:
    """Sign somebody else out everywhere."""
    await session.execute(update(User).where(User.id == user_id).values(**END_SESSIONS_VALUES))
    await audit.record(session, Event.SESSIONS_ENDED, user_id, actor_id=actor_id)


async def set_role(session: AsyncSession, user_id: int, role: Role) -> None:
    """Make a user an administrator, or a member like all others."""
    await session.execute(update(User).where(User.id == user_id).values(role=role))
    event = Event.PROMOTED if role == Role.ADMINISTRATOR else Event.DEMOTED
    await audit.record(session, event, user_id)


async def deactivate_user(
    session: AsyncSession, user_id: int, *, actor_id: int | None = None
) -> None:
    """Deactivate a user and end their sessions.

    Args:
        session: of `write()`.
        user_id: whose account.
        actor_id: who does it, if it is another user.
    """
    values = {"deactivated_at": func.now(), **END_SESSIONS_VALUES}
    await session.execute(update(User).where(User.id == user_id).values(**values))
    await audit.record(session, Event.DEACTIVATED, user_id, actor_id=actor_id)


async def reactivate_user(
    session: AsyncSession, user_id: int, *, actor_id: int | None = None
) -> None:
    """Reactivate a user; ended sessions and revoked tokens stay ended."""
    await session.execute(update(User).where(User.id == user_id).values(deactivated_at=None))
    await audit.record(session, Event.REACTIVATED, user_id, actor_id=actor_id)


async def list_newest_users(source: Source, *, limit: int = 20) -> list[Member]:
    """Return the members who joined last, newest first.

    Only those whose address is confirmed, and who are not deactivated.
    """
    return await SELECT_NEWEST.rows(source, count=limit)


async def search_users(
    session: AsyncSession, *, prefix: str = "", before: int | None = None, limit: int
) -> Sequence[User]:
    """Return users, newest first: whose name or address begins so, whose id is below `before`."""
    query = select(User).order_by(User.id.desc()).limit(limit)
    if prefix:
        start = prefix.lower()
        columns = map(func.lower, (User.username, User.email, User.pending_email))
        query = query.where(or_(*(each.startswith(start, autoescape=True) for each in columns)))
    if before is not None:
        query = query.where(User.id < before)
    return (await session.scalars(query)).all()


def _valid_session_conditions(user: User) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions under which `user`, as it was loaded, may still ask for anything.

    A request can take long to arrive; its session may have been ended meanwhile.
    """
    return (
        User.id == user.id,
        User.session_version == user.session_version,
        User.deactivated_at.is_(None),
    )


async def _update_user(session: AsyncSession, user: User, **values: Any) -> User:
    """Change the row of the user who asks, and return it.

    Raises:
        SessionEnded: the session that asks was ended.
    """
    change = update(User).where(*_valid_session_conditions(user)).values(**values).returning(User)
    changed = await session.scalar(change)
    if changed is None:
        raise SessionEndedError
    return changed


def _translate_integrity_error(error: IntegrityError) -> Exception:
    """Return what a violated unique index means, or the error itself if it is none of ours."""
    index = getattr(error.driver_exception, "constraint_name", None)
    fields = {UNIQUE_USERNAME.name: "username", UNIQUE_EMAIL.name: "email"}
    return AccountTakenError(fields[index]) if index in fields else error
