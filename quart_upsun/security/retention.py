"""Retention of audit events."""

from datetime import timedelta

from sqlalchemy import func, select

from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.security.models import AuditEvent

# A little more than a year, so that events can be compared with the same time last year.
RETENTION = timedelta(days=400)


async def delete_old_events(running: JobContext) -> None:
    """Delete audit events that are older than `RETENTION`, in batches."""
    # The table's trigger rejects deletes without this setting.
    allow_delete = select(func.set_config("app.audit_maintenance", "on", True))
    is_old = AuditEvent.at < func.now() - RETENTION
    await cleanup.delete_in_batches(
        running.database,
        cleanup.delete_oldest_statement(AuditEvent.id, is_old),
        first=allow_delete,
    )


CLEANUP = Schedule(
    Task("forget old audit events", delete_old_events, timeout=cleanup.TIMEOUT_SECONDS),
    "17 3 * * *",
)
