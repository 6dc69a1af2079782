"""Which environment a database belongs to, and which previews' data have been sanitized."""

from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, CheckConstraint, DateTime, String, func
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base
from app.preview.columns import KEPT


class DatabaseOwner(Base):
    """The environment a database belongs to, in the table's only row; see app/ownership.py."""

    __tablename__ = "database_owner"
    __sanitize__: ClassVar = {
        "id": KEPT,
        "environment": KEPT,
        "type": KEPT,
        "claimed_at": KEPT,
    }

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, server_default="1")
    environment: Mapped[str] = mapped_column(String(255))
    type: Mapped[str] = mapped_column(String(20))
    """`production`, `staging`, `development` or `unknown`; `local` off Upsun."""
    claimed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class Sanitization(Base):
    """One environment's run of `quart sanitize`.

    A row by environment: it is cloned with the data, and means nothing to the clone.
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
    """The table being worked on."""
    position: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """The last primary key done in that table."""
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
