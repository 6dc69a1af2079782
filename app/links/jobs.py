"""The background job of the reading list: icons that no link uses are deleted."""

from datetime import timedelta

from sqlalchemy import delete, exists, func, select

from app.links.models import Icon, Link
from quart_upsun.jobs.cleanup import BATCH, TIMEOUT, forget
from quart_upsun.jobs.queue import Running, Schedule, Task


async def delete_unused_icons(running: Running) -> None:
    """Delete icons that no link uses."""
    unused = (
        select(Icon.digest)
        .where(
            Icon.created_at < func.now() - timedelta(days=1),
            ~exists().where(Link.icon_digest == Icon.digest),
        )
        .limit(BATCH)
    )
    await forget(running.database, delete(Icon).where(Icon.digest.in_(unused)))


DELETE_UNUSED_ICONS = Task("links.remove_icons", delete_unused_icons, timeout=TIMEOUT)
SCHEDULES = (Schedule(DELETE_UNUSED_ICONS, "40 3 * * *"),)
