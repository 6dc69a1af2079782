"""Imports of bookmark files."""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    String,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED


class Import(Base):
    """An import of a bookmark file, and its progress."""

    __tablename__ = "link_imports"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    state: Mapped[str] = mapped_column(String(20), server_default="waiting")
    """receiving, waiting, running, done, failed."""
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes of the file."""
    position: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Bytes processed so far, for the progress bar."""
    seen: Mapped[int] = mapped_column(Integer, server_default="0")
    """Links processed so far: a retry skips this many."""
    added: Mapped[int] = mapped_column(Integer, server_default="0")
    refused: Mapped[int] = mapped_column(Integer, server_default="0")
    """Links that were skipped: not a web address, or too long."""
    error: Mapped[str | None] = mapped_column(String(200))
    """Why it failed."""
    warning: Mapped[str | None] = mapped_column(String(1000))
    """What was shortened, skipped or damaged."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class ImportChunk(Base):
    """A chunk of an uploaded file, which the worker cannot read from the web container's disk."""

    __tablename__ = "link_import_chunks"
    __sanitize__ = EMPTIED

    import_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("link_imports.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    content: Mapped[bytes] = mapped_column(LargeBinary)
