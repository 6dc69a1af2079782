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
MAX_TAGS = 20  # of one link at most


class Icon(Base):
    """A site's icon, under the digest of its content, so that no address tells who uses it."""

    __tablename__ = "link_icons"
    __sanitize__ = EMPTIED

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    """SHA-256 of the content."""
    content: Mapped[bytes] = mapped_column(LargeBinary)
    content_type: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Link(Base):
    """Something that a user wants to read.

    A trigger of the migration keeps `link_tags` as the other columns say. Whatever changes a text
    changes `search` as well, by app/links/search_index.py.
    """

    __tablename__ = "links"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id", ondelete="CASCADE"))
    url: Mapped[str] = mapped_column(String(URL_LENGTH))
    """Normalised; unique for its owner."""
    title: Mapped[str] = mapped_column(String(TITLE_LENGTH), server_default="")
    title_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """By the owner or an import: then a fetch leaves it alone."""
    description: Mapped[str] = mapped_column(String(DESCRIPTION_LENGTH), server_default="")
    description_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """By the owner or an import: then a fetch leaves it alone."""
    icon_digest: Mapped[bytes | None] = mapped_column(
        LargeBinary, ForeignKey("link_icons.digest"), index=True
    )
    tags: Mapped[list[str]] = mapped_column(ARRAY(String(TAG_LENGTH)), server_default="{}")
    """Sorted, each once."""
    archived: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    version: Mapped[int] = mapped_column(Integer, server_default="1")
    """One more with each change: the entity tag of the API."""
    attempted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When its page was last asked for, whatever came of it."""
    fetched_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When a fetch last ended, well or not; None while the first is awaited."""
    fetch_error: Mapped[str | None] = mapped_column(String(200))
    """Why the last fetch failed."""
    search: Mapped[str | None] = mapped_column(TSVECTOR)
    """The words of title, tags, description and address; see app/links/search_index.py."""

    __table_args__ = (
        UniqueConstraint("user_id", "url", name="uq_links_user_id"),
        Index("ix_links_user_id", "user_id", "id"),
        Index("ix_links_user_id_archived", "user_id", "archived", "id"),
        Index("ix_links_user_id_attempted_at", "user_id", text("attempted_at NULLS FIRST")),
        Index("ix_links_search", "search", postgresql_using="gin"),
    )


class LinkTag(Base):
    """The tags of links once more, in the order in which pages show them; a trigger writes it."""

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
    """A tag whose links anybody may see."""

    __tablename__ = "public_lists"
    __sanitize__ = EMPTIED

    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(String(TAG_LENGTH), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
