"""The reading list: links, their tags and icons, and published tags."""

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED

URL_LENGTH = 2048
TITLE_LENGTH = 300
DESCRIPTION_LENGTH = 1000
TAG_LENGTH = 40
MAX_TAGS = 20  # of one link


class Icon(Base):
    """A site's icon, keyed by the digest of its content: its URL does not reveal who uses it."""

    __tablename__ = "link_icons"
    __sanitize__ = EMPTIED

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    """SHA-256 of the content."""
    content: Mapped[bytes] = mapped_column(LargeBinary)
    content_type: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Link(Base):
    """A link on a user's reading list.

    A database trigger keeps `link_tags` up to date. Code that changes a text must also update
    `search`; see app/links/search_index.py.
    """

    __tablename__ = "links"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id", ondelete="CASCADE"))
    url: Mapped[str] = mapped_column(String(URL_LENGTH))
    """Normalized; unique per owner."""
    title: Mapped[str] = mapped_column(String(TITLE_LENGTH), server_default="")
    title_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """Whether the owner or an import set it; a fetch does not overwrite it then."""
    description: Mapped[str] = mapped_column(String(DESCRIPTION_LENGTH), server_default="")
    description_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """Whether the owner or an import set it; a fetch does not overwrite it then."""
    icon_digest: Mapped[bytes | None] = mapped_column(
        LargeBinary, ForeignKey("link_icons.digest"), index=True
    )
    tags: Mapped[list[str]] = mapped_column(ARRAY(String(TAG_LENGTH)), server_default="{}")
    """Sorted, without duplicates."""
    archived: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    version: Mapped[int] = mapped_column(Integer, server_default="1")
    """Incremented by each change; the `ETag` of the API."""
    attempted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When a fetch was last enqueued, whatever its result."""
    fetched_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When the last fetch ended, successful or not; None before the first."""
    fetch_error: Mapped[str | None] = mapped_column(String(200))
    """Error of the last fetch; None if it succeeded."""
    search: Mapped[str | None] = mapped_column(TSVECTOR)
    """The words of title, tags, description and URL; see app/links/search_index.py."""

    __table_args__ = (
        UniqueConstraint("user_id", "url", name="uq_links_user_id"),
        Index("ix_links_user_id", "user_id", "id"),
        Index("ix_links_user_id_archived", "user_id", "archived", "id"),
        Index("ix_links_user_id_attempted_at", "user_id", text("attempted_at NULLS FIRST")),
        Index("ix_links_search", "search", postgresql_using="gin"),
    )


class LinkTag(Base):
    """The tags of links, denormalized for indexed lists and pagination; maintained by a trigger."""

    __tablename__ = "link_tags"
    __sanitize__ = EMPTIED

    link_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("links.id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(String(TAG_LENGTH), primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    archived: Mapped[bool] = mapped_column(Boolean)

    __table_args__ = (
        Index("ix_link_tags_user_id", "user_id", "tag", "link_id"),
        Index("ix_link_tags_user_id_archived", "user_id", "tag", "archived", "link_id"),
    )


class PublicList(Base):
    """A tag whose links are public."""

    __tablename__ = "public_lists"
    __sanitize__ = EMPTIED

    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(String(TAG_LENGTH), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
