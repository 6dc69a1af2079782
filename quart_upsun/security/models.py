"""Tables for the audit trail and the rate limits."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, Index, Integer, String, func
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED
from quart_upsun.database.base import run_after_create


class AuditEvent(Base):
    """A security event of an account. A trigger makes the table append-only."""

    __tablename__ = "audit_events"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    kind: Mapped[str] = mapped_column(String(40))
    user_id: Mapped[int | None] = mapped_column(BigInteger)
    """The account. Not a foreign key, because events outlive accounts."""
    actor_id: Mapped[int | None] = mapped_column(BigInteger)
    """The user who made the change, if it was another user."""
    client: Mapped[str | None] = mapped_column(String(45))
    """The client's IP address. None on the command line."""

    __table_args__ = (Index("ix_audit_events_user_id", "user_id", "id"),)


# Protects the audit trail from bugs in the application. Code that has to delete rows sets
# `app.audit_maintenance` first.
run_after_create(
    AuditEvent,
    """
    CREATE OR REPLACE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF coalesce(current_setting('app.audit_maintenance', true), '') <> 'on' THEN
            RAISE EXCEPTION 'audit_events is append-only'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
    """,
)


class RateLimit(Base):
    """The rate limit state of one client or account. See `quart_upsun.security.limits`.

    The table is UNLOGGED: requests do not wait for the disk, and a crash of the database resets
    all limits.
    """

    __tablename__ = "rate_limits"
    __sanitize__ = EMPTIED

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    bucket: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """A keyed hash of the client's IP address or the account."""
    used_until: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)

    __table_args__ = {"prefixes": ["UNLOGGED"]}  # noqa: RUF012 as SQLAlchemy types it
