"""The sessions of users: one row for each login that has not ended.

The login cookie names a session (see `app.user.login`). A session ends when its row is deleted,
when its cookie expires, or, like all sessions of its user, when `users.session_version` is
incremented.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    Boolean,
    bindparam,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import instance_dict

from app.user.accounts import SessionEndedError
from app.user.audit_trail import Event
from app.user.models import CLIENT_LENGTH, USER_AGENT_LENGTH, User, UserSession
from quart_upsun.database import Base, Database
from quart_upsun.database.statements import Source, Statement
from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.security import audit

LAST_SEEN_RESOLUTION = timedelta(minutes=10)  # of `last_seen_at`


# The first mark in a `User-Agent` header decides, because browsers also name those they resemble.
BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
SYSTEMS = (
    ("Windows", "Windows"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Macintosh", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)


class CurrentSession(NamedTuple):
    """The session of a request."""

    id: int
    created_at: datetime
    proved_at: datetime
    """When the user last proved their identity: at the login, or on the page that asks for it."""
    is_persistent: bool
    is_use_due: bool
    """Whether `last_seen_at` is older than `LAST_SEEN_RESOLUTION`; see `record_use`."""


class LoggedIn(NamedTuple):
    """A user and the session that a cookie names."""

    user: User
    session: CurrentSession


# Built once: they run with nearly every request of a logged-in user, and building them takes longer
# than running them.
_users = Base.metadata.tables[User.__tablename__]
_sessions = Base.metadata.tables[UserSession.__tablename__]
_is_use_due = _sessions.c.last_seen_at < func.now() - LAST_SEEN_RESOLUTION
_CURRENT = (
    _sessions.c.id,
    _sessions.c.created_at,
    _sessions.c.proved_at,
    _sessions.c.is_persistent,
    _is_use_due,
)


def _logged_in(values: Iterable[Any]) -> LoggedIn:
    """Make a detached user of a row; the constructor would note each value as a change."""
    found = tuple(values)
    user = User()
    instance_dict(user).update(zip(_users.c.keys(), found, strict=False))
    return LoggedIn(user, CurrentSession._make(found[len(_users.c) :]))


SELECT_LOGGED_IN = Statement(
    select(_users, *_CURRENT)
    .join_from(_sessions, _users, _users.c.id == _sessions.c.user_id)
    .where(
        _sessions.c.id == bindparam("session_id"),
        _users.c.id == bindparam("user_id"),
        _users.c.session_version == bindparam("version"),
        _users.c.deactivated_at.is_(None),
    ),
    _logged_in,
)


async def get_logged_in(
    source: Source, *, session_id: int, user_id: int, version: int
) -> LoggedIn | None:
    """Return the user and the session of a login cookie, or None if the session has ended."""
    return await SELECT_LOGGED_IN.first(
        source, session_id=session_id, user_id=user_id, version=version
    )


async def create_session(
    session: AsyncSession,
    user: User,
    *,
    is_persistent: bool,
    lifetime: timedelta,
    client: str | None,
    user_agent: str,
) -> CurrentSession:
    """Create a session, which counts as a proof of the user's identity.

    Args:
        session: a session of `write()`.
        user: the user as loaded when they proved their identity.
        is_persistent: whether the login persists after the browser is closed.
        lifetime: how long the cookie is valid.
        client: the IP address.
        user_agent: the `User-Agent` header. It is shortened.

    Raises:
        SessionEndedError: all sessions of the user were ended in the meantime, for instance by a
            new password.
    """
    # Selected from the user, so that a login with a password that was just changed creates nothing.
    row = select(
        _users.c.id,
        _users.c.session_version,
        literal(client and client[:CLIENT_LENGTH]),
        literal(user_agent[:USER_AGENT_LENGTH]),
        literal(is_persistent, Boolean),
        func.now() + lifetime,
    ).where(
        _users.c.id == user.id,
        _users.c.session_version == user.session_version,
        _users.c.deactivated_at.is_(None),
    )
    names = ["user_id", "session_version", "client", "user_agent", "is_persistent", "expires_at"]
    created = insert(_sessions).from_select(names, row).returning(*_CURRENT)
    found = (await session.execute(created)).one_or_none()
    if found is None:
        raise SessionEndedError
    return CurrentSession._make(found)


async def record_use(session: AsyncSession, session_id: int, client: str | None) -> None:
    """Update `last_seen_at`, at most once per `LAST_SEEN_RESOLUTION`, and the address."""
    await session.execute(
        update(_sessions)
        .where(_sessions.c.id == session_id, _is_use_due)
        .values(last_seen_at=func.now(), client=client and client[:CLIENT_LENGTH])
    )


async def renew_session(
    session: AsyncSession, session_id: int, *, lifetime: timedelta
) -> CurrentSession:
    """Give a session a new id after a proof, and return it.

    The old cookie ends, so that a copy of it does not get the rights of the proof. The new one is
    valid for `lifetime` from now on.

    Raises:
        SessionEndedError: the session has ended.
    """
    renewed = (
        update(_sessions)
        .where(_sessions.c.id == session_id)
        # The only value that PostgreSQL takes for an identity column: the next of its sequence.
        .values(
            id=text("DEFAULT"),
            proved_at=func.now(),
            last_seen_at=func.now(),
            expires_at=func.now() + lifetime,
        )
        .returning(*_CURRENT)
    )
    found = (await session.execute(renewed)).one_or_none()
    if found is None:
        raise SessionEndedError
    return CurrentSession._make(found)


async def list_sessions(session: AsyncSession, user_id: int) -> Sequence[UserSession]:
    """Return the sessions of a user that have not ended, the most recently used first."""
    query = (
        select(UserSession)
        .join(User, User.id == UserSession.user_id)
        .where(
            UserSession.user_id == user_id,
            UserSession.session_version == User.session_version,
            UserSession.expires_at > func.now(),
        )
        .order_by(UserSession.last_seen_at.desc(), UserSession.id.desc())
    )
    return (await session.scalars(query)).all()


async def end_session(session: AsyncSession, user_id: int, session_id: int) -> bool:
    """End one session of a user; return False if the user has no such session."""
    gone = (
        delete(UserSession)
        .where(UserSession.id == session_id, UserSession.user_id == user_id)
        .returning(UserSession.id)
    )
    if await session.scalar(gone) is None:
        return False
    await audit.record(session, Event.SESSION_ENDED, user_id)
    return True


async def end_other_sessions(session: AsyncSession, user_id: int, session_id: int) -> None:
    """End all sessions of a user except one."""
    await session.execute(
        delete(UserSession).where(UserSession.user_id == user_id, UserSession.id != session_id)
    )
    await audit.record(session, Event.OTHER_SESSIONS_ENDED, user_id)


async def delete_session(session: AsyncSession, session_id: int) -> None:
    """Delete the session that the user logs out of."""
    await session.execute(delete(UserSession).where(UserSession.id == session_id))


def describe_browser(user_agent: str) -> str:
    """Return the browser and system of a `User-Agent` header in plain words."""
    browser, system = (
        next((name for mark, name in marks if mark in user_agent), None)
        for marks in (BROWSERS, SYSTEMS)
    )
    if browser is None:
        return "Unknown browser"
    return f"{browser} on {system}" if system else browser


async def export_sessions(
    database: Database, user_id: int
) -> AsyncIterator[Sequence[dict[str, Any]]]:
    """Yield a user's sessions for the personal data export."""
    async with database.read() as session:
        found = await list_sessions(session, user_id)
    yield [
        {
            "created_at": each.created_at.isoformat(),
            "last_seen_at": each.last_seen_at.isoformat(),
            "client": each.client,
            "user_agent": each.user_agent,
            "is_persistent": each.is_persistent,
        }
        for each in found
    ]


async def delete_ended_sessions(running: JobContext) -> None:
    """Delete sessions whose cookie has expired, or that ended with all others of their user."""
    is_current = (
        select(User.id)
        .where(User.id == UserSession.user_id, User.session_version == UserSession.session_version)
        .exists()
    )
    batch = (
        select(UserSession.id)
        .where(or_(UserSession.expires_at <= func.now(), ~is_current))
        .limit(cleanup.BATCH_SIZE)
    )
    await cleanup.delete_in_batches(
        running.database, delete(UserSession).where(UserSession.id.in_(batch))
    )


DELETE_ENDED_SESSIONS = Schedule(
    Task("delete ended sessions", delete_ended_sessions, timeout=cleanup.TIMEOUT_SECONDS),
    "17 4 * * *",
)
