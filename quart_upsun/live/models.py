"""The table of live events."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Identity, Index, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED


class LiveEvent(Base):
    """An event for a user's open pages, stored so that streams can resume."""

    __tablename__ = "live_events"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    """Increases in the order of commits among the events of one user."""
    user_id: Mapped[int] = mapped_column(BigInteger)
    """The id of the application's user; the application adds the foreign key."""
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (
        Index("ix_live_events_user_id", "user_id", "id"),
        Index("ix_live_events_created_at", "created_at"),
    )
