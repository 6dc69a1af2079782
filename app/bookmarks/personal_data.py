"""A user's imports, for "Download your data"."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from app.bookmarks.models import Import
from app.site import PersonalDataSection
from quart_upsun.database import Database


async def export_imports(
    database: Database, user_id: int
) -> AsyncIterator[Sequence[dict[str, Any]]]:
    names = ("id", "created_at", "finished_at", "state", "size", "seen", "added", "refused")
    columns = [getattr(Import, name) for name in (*names, "error", "warning")]
    mine = select(*columns).where(Import.user_id == user_id).order_by(Import.id)
    async with database.read() as session:
        rows = (await session.execute(mine)).all()
    yield [
        {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in row._mapping.items()
        }
        for row in rows
    ]


SECTIONS = (PersonalDataSection("imports", export_imports, ("link_imports", "link_import_chunks")),)
