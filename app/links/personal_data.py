"""A user's links, public lists and imports, for "Download your data"."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from app.links import exports
from app.links.models import Import, PublicList
from app.site import Part
from quart_upsun.database import Database


async def links(database: Database, user_id: int) -> AsyncIterator[Sequence[dict[str, Any]]]:
    async for rows in exports.pages(database, user_id):
        yield [exports.as_json(row) for row in rows]


async def lists(database: Database, user_id: int) -> AsyncIterator[Sequence[dict[str, Any]]]:
    mine = select(PublicList.tag, PublicList.created_at).where(PublicList.user_id == user_id)
    async with database.read() as session:
        rows = (await session.execute(mine.order_by(PublicList.tag))).all()
    yield [{"tag": row.tag, "published_at": row.created_at.isoformat()} for row in rows]


async def imports(database: Database, user_id: int) -> AsyncIterator[Sequence[dict[str, Any]]]:
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


PARTS = (
    Part("links", links, ("links", "link_tags")),
    Part("public_lists", lists, ("public_lists",)),
    Part("imports", imports, ("link_imports", "link_import_chunks")),
)
