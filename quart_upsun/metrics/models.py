"""The tables of the metrics."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED


class MetricsMinute(Base):
    """The totals of a process in a minute, of the last hours.

    Unlogged: each process updates its row every few seconds, which would otherwise be most of the
    write-ahead log of a quiet site. A crash of the database empties the table.
    """

    __tablename__ = "metrics_minutes"
    __sanitize__ = EMPTIED

    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    process: Mapped[str] = mapped_column(String(32), primary_key=True)
    """A random id, so that the processes of all instances add up."""
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)

    __table_args__ = {"prefixes": ["UNLOGGED"]}  # noqa: RUF012 as SQLAlchemy has it


class MetricsHour(Base):
    """The totals of all processes in an hour, of the last two weeks."""

    __tablename__ = "metrics_hours"
    __sanitize__ = EMPTIED

    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    minutes: Mapped[int] = mapped_column(BigInteger)
    """The number of minutes with data."""
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)


class MetricsDeploy(Base):
    """The first minute of a release."""

    __tablename__ = "metrics_deploys"
    __sanitize__ = EMPTIED

    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    release: Mapped[str] = mapped_column(String(64), primary_key=True)
