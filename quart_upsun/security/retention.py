"""The audit trail does not go back for ever."""

from datetime import timedelta

from sqlalchemy import func, select

from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.security.models import AuditEvent

# A year and a little: time to see what happened at the same time a year ago.
RETENTION = timedelta(days=400)


async def delete_old_events(running: JobContext) -> None:
    """Delete audit events that are too old to be of use to anybody."""
    # The table's trigger wants to be told that this is meant.
    on = select(func.set_config("app.audit_maintenance", "on", True))
    old = AuditEvent.at < func.now() - RETENTION
    await cleanup.delete_in_batches(
        running.database, cleanup.delete_oldest_statement(AuditEvent.id, old), first=on
    )


CLEANUP = Schedule(
    Task("forget old audit events", delete_old_events, timeout=cleanup.TIMEOUT_SECONDS),
    "17 3 * * *",
)
