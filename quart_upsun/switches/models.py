"""The table of switches."""

from datetime import datetime

from sqlalchemy import DateTime, Integer, String, func
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED

MAX_MESSAGE_LENGTH = 450  # characters, without the expected end


class SwitchRow(Base):
    """A switch that is on. A preview starts with all switches off."""

    __tablename__ = "switches"
    __sanitize__ = EMPTIED

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    """`maintenance` or `read-only`."""
    message: Mapped[str] = mapped_column(String(500))
    """The sentence for visitors."""
    retry_after_seconds: Mapped[int] = mapped_column(Integer)
    """From `since` to the expected end."""
    since: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
