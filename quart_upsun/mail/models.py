"""Mails that are kept where none is sent."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Identity, Index, Integer, String, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED


class Mail(Base):
    """A mail that was kept instead of sent: never due, and with its message.

    The release before has its outbox here. While it runs beside this one it sends what it posts,
    and what it leaves `outbox.take_over` makes into jobs. `data`, `attempts`, `due_at` and `error`
    are its own.
    """

    __tablename__ = "mails"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    due_at: Mapped[datetime | None] = mapped_column(
        DateTime(timezone=True), server_default=func.now()
    )
    """When to try next; None once it was given up, and in what this release adds."""
    error: Mapped[str | None] = mapped_column(Text)
    """Why the last attempt failed."""
    message: Mapped[str | None] = mapped_column(Text)
    """The whole mail, where it is kept instead of sent."""

    __table_args__ = (
        Index("ix_mails_due_at", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    )
