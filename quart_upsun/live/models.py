"""What streams of events are made of."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Identity, Index, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED


class LiveEvent(Base):
    """Something that a user's open pages are told; kept for who comes back after a while."""

    __tablename__ = "live_events"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    """Within one user's events in the order in which they were committed."""
    user_id: Mapped[int] = mapped_column(BigInteger)
    """Of the application's user; the application adds the foreign key."""
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (
        Index("ix_live_events_user_id", "user_id", "id"),
        Index("ix_live_events_created_at", "created_at"),
    )
