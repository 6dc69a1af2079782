"""The table that records which previews have been sanitized."""

from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, DateTime, String, func
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import KEPT


class Sanitization(Base):
    """The progress of `quart sanitize` in one environment.

    The rows are cloned with the data. A clone ignores those of other environments.
    """

    __tablename__ = "sanitizations"
    __sanitize__: ClassVar = {
        "environment": KEPT,
        "table": KEPT,
        "position": KEPT,
        "started_at": KEPT,
        "finished_at": KEPT,
    }

    environment: Mapped[str] = mapped_column(String(255), primary_key=True)
    table: Mapped[str | None] = mapped_column(String(63))
    """The table that is being updated."""
    position: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """The last primary key that was updated in that table."""
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
