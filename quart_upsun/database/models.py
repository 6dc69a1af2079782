"""The tables of the owner of the database, and of what token clients have written."""

from datetime import datetime
from typing import ClassVar

from sqlalchemy import BigInteger, CheckConstraint, DateTime, String, func
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database.anonymization import EMPTIED, KEPT
from quart_upsun.database.base import Base


class DatabaseOwner(Base):
    """The owner of the database, in the only row of the table."""

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


class LogPosition(Base):
    """Where the last change that a user has made with an access token is in the log.

    Used only with a read replica: browsers have a cookie instead. The table is UNLOGGED: a crash of
    the database empties it, but closes the schema gate of all processes, too, whose reads then
    include everything from before the crash.
    """

    __tablename__ = "log_positions"
    __sanitize__ = EMPTIED

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(BigInteger)
    written_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))

    __table_args__ = {"prefixes": ["UNLOGGED"]}  # noqa: RUF012 as SQLAlchemy types it
