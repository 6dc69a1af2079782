"""The cleanup job of the reading list."""

from quart import Quart
from sqlalchemy import select, text, update

from app.links import queries
from app.links.jobs import DELETE_UNUSED_ICONS
from app.links.models import Icon, Link
from quart_upsun.database import Database
from quart_upsun.jobs.queue import enqueue
from quart_upsun.testing import runner_of
from tests.features.factories import Person


async def test_cleanup_deletes_unused_icons(app: Quart, database: Database, ada: Person) -> None:
    async with database.write() as session:
        item, _ = await queries.save_link(session, ada.id, "https://example.com/")
        for digest in (b"used", b"idle", b"new"):
            session.add(Icon(digest=digest, content=b"x", content_type="image/png"))
        await session.flush()
        await session.execute(
            update(Icon)
            .where(Icon.digest != b"new")
            .values(created_at=text("now() - '2d'::interval"))
        )
        await session.execute(update(Link).where(Link.id == item.id).values(icon_digest=b"used"))
        await enqueue(session, DELETE_UNUSED_ICONS)
    await runner_of(app, DELETE_UNUSED_ICONS).run_due()
    async with database.read() as session:
        left = (await session.scalars(select(Icon.digest).order_by(Icon.digest))).all()
    assert left == [b"new", b"used"]
