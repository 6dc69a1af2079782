"""The tables of PgQueuer 1.6. A test compares them with the schema that PgQueuer creates.

https://pgqueuer.readthedocs.io/
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ENUM, JSONB, UUID
from sqlalchemy.orm import Mapped, mapped_column

from quart_upsun.database import Base
from quart_upsun.database.anonymization import EMPTIED
from quart_upsun.database.base import run_after_create

Status = ENUM(
    *("queued", "picked", "successful", "exception", "canceled", "deleted", "failed"),
    name="pgqueuer_status",
    metadata=Base.metadata,
)


class Job(Base):
    """A job: queued, running or failed."""

    __tablename__ = "pgqueuer"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    priority: Mapped[int] = mapped_column(Integer)
    queue_manager_id: Mapped[str | None] = mapped_column(UUID(as_uuid=False))
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    heartbeat: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    execute_after: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now()
    )
    status: Mapped[str] = mapped_column(Status)
    entrypoint: Mapped[str] = mapped_column(Text)
    dedupe_key: Mapped[str | None] = mapped_column(Text)
    payload: Mapped[bytes | None] = mapped_column(LargeBinary)
    headers: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    slot: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        Index(
            "pgqueuer_ep_ea_idx",
            "entrypoint",
            "execute_after",
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "pgqueuer_ep_prio_id_idx",
            "entrypoint",
            text("priority DESC"),
            "id",
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "pgqueuer_picked_heartbeat_idx",
            "heartbeat",
            postgresql_where=text("status = 'picked'"),
        ),
        Index(
            "pgqueuer_picked_slot_idx",
            "entrypoint",
            "slot",
            unique=True,
            postgresql_where=text("status = 'picked' AND slot IS NOT NULL"),
        ),
        Index(
            "pgqueuer_priority_id_id1_idx",
            "priority",
            text("id DESC"),
            postgresql_include=["id"],
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "pgqueuer_queue_manager_id_idx",
            "queue_manager_id",
            postgresql_where=text("queue_manager_id IS NOT NULL"),
        ),
        Index(
            "pgqueuer_unique_dedupe_key",
            "dedupe_key",
            unique=True,
            postgresql_where=text("status IN ('queued', 'picked') AND dedupe_key IS NOT NULL"),
        ),
        Index(
            "pgqueuer_updated_id_id1_idx",
            "updated",
            text("id DESC"),
            postgresql_include=["id"],
            postgresql_where=text("status = 'picked'"),
        ),
    )


# Notifies the workers of new jobs. It does not notify of an UPDATE, because the workers themselves
# update rows all the time.
run_after_create(
    Job,
    """
    CREATE OR REPLACE FUNCTION fn_pgqueuer_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP <> 'UPDATE' THEN
            PERFORM pg_notify(
                'ch_pgqueuer',
                json_build_object(
                    'channel', 'ch_pgqueuer',
                    'operation', lower(TG_OP),
                    'sent_at', now(),
                    'table', TG_TABLE_NAME,
                    'type', 'table_changed_event'
                )::text
            );
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER tg_pgqueuer_changed
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON pgqueuer
    EXECUTE FUNCTION fn_pgqueuer_changed()
    """,
)


class JobLog(Base):
    """The history of jobs, with the errors of failed attempts."""

    __tablename__ = "pgqueuer_log"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=False), primary_key=True)
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    job_id: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(Status)
    priority: Mapped[int] = mapped_column(Integer)
    entrypoint: Mapped[str] = mapped_column(Text)
    traceback: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    aggregated: Mapped[bool | None] = mapped_column(Boolean, server_default=text("false"))

    __table_args__ = (
        Index("pgqueuer_log_created", "created"),
        Index("pgqueuer_log_job_id_status", "job_id", text("created DESC")),
        Index("pgqueuer_log_not_aggregated", text("(1)"), postgresql_where=text("NOT aggregated")),
        Index("pgqueuer_log_status", "status"),
    )


class JobSchedule(Base):
    """The next run of a schedule."""

    __tablename__ = "pgqueuer_schedules"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    expression: Mapped[str] = mapped_column(Text)
    entrypoint: Mapped[str] = mapped_column(Text)
    heartbeat: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    next_run: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    last_run: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    status: Mapped[str | None] = mapped_column(Status, server_default="queued")

    __table_args__ = (
        UniqueConstraint(
            "expression", "entrypoint", name="pgqueuer_schedules_expression_entrypoint_key"
        ),
    )


class JobStatistics(Base):
    """PgQueuer's statistics: jobs per second and status.

    It stays empty, but PgQueuer does not start without it.
    """

    __tablename__ = "pgqueuer_statistics"
    __sanitize__ = EMPTIED

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    created: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=text("date_trunc('sec', now())")
    )
    count: Mapped[int] = mapped_column(BigInteger)
    priority: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(Status)
    entrypoint: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        Index(
            "pgqueuer_statistics_unique_count",
            "priority",
            text("date_trunc('sec', timezone('UTC', created))"),
            "status",
            "entrypoint",
            unique=True,
        ),
    )
