"""The tables and the queries of the pages. `tests/documents/test_side_by_side.py` compares them."""

from datetime import datetime, timedelta

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Identity,
    Insert,
    LargeBinary,
    Select,
    String,
    TextClause,
    func,
    insert,
    literal,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MEMBERS = 20
PAGE_SIZE = 20
MAX_TAGS = 200
MAX_ID = 2**63 - 1
LAST_SEEN_RESOLUTION = timedelta(minutes=10)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 as SQLAlchemy has it


class User(Base):
    __tablename__ = "users"

    # What Flask-Login asks of a user.
    is_authenticated = is_active = True
    is_anonymous = False

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    username: Mapped[str]
    email: Mapped[str | None]
    pending_email: Mapped[str | None]
    password_hash: Mapped[str | None]
    session_version: Mapped[int]
    role: Mapped[str]
    deactivated_at: Mapped[datetime | None]
    created_at: Mapped[datetime]

    session_id = 0
    """That of the login, once it is known."""

    def get_id(self) -> str:
        """Return the content of the login cookie; `find_user` takes it."""
        return f"{self.id}.{self.session_version}.{self.session_id}"


class UserSession(Base):
    __tablename__ = "user_sessions"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    session_version: Mapped[int]
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    proved_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    user_agent: Mapped[str]
    is_persistent: Mapped[bool]


class Link(Base):
    __tablename__ = "links"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger, deferred=True)
    url: Mapped[str]
    title: Mapped[str]
    description: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))
    archived: Mapped[bool]
    icon_digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]
    fetched_at: Mapped[datetime | None]
    fetch_error: Mapped[str | None]

    @property
    def label(self) -> str:
        return self.title or self.url.partition("://")[2].rstrip("/")

    @property
    def host(self) -> str:
        return self.url.partition("://")[2].partition("/")[0]

    @property
    def href(self) -> str:
        return self.url if self.url.startswith(("https://", "http://")) else "about:blank"

    @property
    def is_pending(self) -> bool:
        return self.fetched_at is None


class LiveEvent(Base):
    __tablename__ = "live_events"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)


def find_user(login: str) -> Select[User, int, datetime, datetime, bool, bool]:
    """Select the user of a login cookie, and the session."""
    user_id, version, session_id = map(int, login.split("."))
    return (
        select(
            User,
            UserSession.id,
            UserSession.created_at,
            UserSession.proved_at,
            UserSession.is_persistent,
            UserSession.last_seen_at < func.now() - LAST_SEEN_RESOLUTION,
        )
        .join_from(UserSession, User, User.id == UserSession.user_id)
        .where(
            UserSession.id == session_id,
            User.id == user_id,
            User.session_version == version,
            User.deactivated_at.is_(None),
        )
    )


def named_user(username: str) -> Select[User]:
    """Select the user who logs in."""
    return select(User).where(User.username == username)


def new_session(user: User) -> Insert:
    """Insert the session of a login; it returns the id."""
    return (
        insert(UserSession)
        .values(
            user_id=user.id,
            session_version=user.session_version,
            expires_at=func.now() + timedelta(hours=12),
            user_agent="",
            is_persistent=False,
        )
        .returning(UserSession.id)
    )


def newest_members() -> Select[str, datetime]:
    return (
        select(User.username, User.created_at)
        .where(User.email.is_not(None), User.deactivated_at.is_(None))
        .order_by(User.id.desc())
        .limit(MEMBERS)
    )


def newest_event(user_id: int) -> Select[int | None]:
    return select(func.max(LiveEvent.id)).where(LiveEvent.user_id == user_id)


def unread_links(user_id: int) -> Select[Link]:
    """Select the links of a page, and one more if there is a next page."""
    user, unread, newest = literal(user_id), literal(False), literal(MAX_ID, BigInteger)
    return (
        select(Link)
        .where(
            tuple_(Link.user_id, Link.archived) >= tuple_(user, unread),
            tuple_(Link.user_id, Link.archived, Link.id) < tuple_(user, unread, newest),
        )
        .order_by(Link.user_id.desc(), Link.archived.desc(), Link.id.desc())
        .limit(PAGE_SIZE + 1)
    )


def all_tags(user_id: int) -> TextClause:
    """Select the user's tags, and one more if there are too many to show."""
    return ALL_TAGS.bindparams(user_id=user_id, after="", limit=MAX_TAGS + 1)


ALL_TAGS = text(
    """
    WITH RECURSIVE known AS (
        (
            SELECT tag FROM link_tags
            WHERE user_id = :user_id AND tag > :after ORDER BY tag LIMIT 1
        )
        UNION ALL
        SELECT (
            SELECT tag FROM link_tags
            WHERE user_id = :user_id AND tag > known.tag ORDER BY tag LIMIT 1
        ) FROM known WHERE known.tag IS NOT NULL
    )
    SELECT tag FROM known WHERE tag IS NOT NULL LIMIT :limit
    """
)
