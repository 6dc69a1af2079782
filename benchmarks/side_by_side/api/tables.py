"""The tables and the two queries that all compared applications use."""

import hashlib
from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    ForeignKey,
    LargeBinary,
    Select,
    String,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 as SQLAlchemy has it


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    username: Mapped[str]
    deactivated_at: Mapped[datetime | None]


class AccessToken(Base):
    __tablename__ = "access_tokens"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id"))
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    expires_at: Mapped[datetime]


class Link(Base):
    __tablename__ = "links"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id"))
    url: Mapped[str]
    title: Mapped[str]
    description: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))
    archived: Mapped[bool]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]
    fetched_at: Mapped[datetime | None]
    fetch_error: Mapped[str | None]


def holder(token: str) -> Select[int, str, list[str]]:
    """Select the owner of a token: `id`, `username` and `scopes`."""
    return (
        select(User.id, User.username, AccessToken.scopes)
        .join(AccessToken, AccessToken.user_id == User.id)
        .where(
            AccessToken.digest == hashlib.sha256(token.encode()).digest(),
            AccessToken.expires_at > func.now(),
            User.deactivated_at.is_(None),
        )
    )


def newest(user_id: int, limit: int) -> Select[Link]:
    """Select the newest links of a user."""
    user, newest_id = literal(user_id, BigInteger), literal(2**63 - 1, BigInteger)
    return (
        select(Link)
        .where(Link.user_id >= user, tuple_(Link.user_id, Link.id) < tuple_(user, newest_id))
        .order_by(Link.user_id.desc(), Link.id.desc())
        .limit(limit)
    )
