"""The audit trail does not go back for ever."""

from datetime import timedelta

from sqlalchemy import func, select

from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import Running, Schedule, Task
from quart_upsun.security.models import AuditEvent

# A year and a little: time to see what happened at the same time a year ago.
KEEP = timedelta(days=400)


async def forget_events(running: Running) -> None:
    """Delete audit events that are too old to be of use to anybody."""
    # The table's trigger wants to be told that this is meant.
    on = select(func.set_config("app.audit_maintenance", "on", True))
    old = AuditEvent.at < func.now() - KEEP
    await cleanup.forget(running.database, cleanup.oldest(AuditEvent.id, old), first=on)


FORGET = Schedule(
    Task("forget old audit events", forget_events, timeout=cleanup.TIMEOUT), "17 3 * * *"
)
