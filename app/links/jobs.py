"""The background job of the reading list: delete unused icons."""

from datetime import timedelta

from sqlalchemy import delete, exists, func, select

from app.links.models import Icon, Link
from quart_upsun.jobs.cleanup import BATCH_SIZE, TIMEOUT_SECONDS, delete_in_batches
from quart_upsun.jobs.queue import JobContext, Schedule, Task


async def delete_unused_icons(running: JobContext) -> None:
    """Delete icons that no link uses."""
    unused = (
        select(Icon.digest)
        .where(
            Icon.created_at < func.now() - timedelta(days=1),
            ~exists().where(Link.icon_digest == Icon.digest),
        )
        .limit(BATCH_SIZE)
    )
    await delete_in_batches(running.database, delete(Icon).where(Icon.digest.in_(unused)))


DELETE_UNUSED_ICONS = Task("links.remove_icons", delete_unused_icons, timeout=TIMEOUT_SECONDS)
SCHEDULES = (Schedule(DELETE_UNUSED_ICONS, "40 3 * * *"),)
