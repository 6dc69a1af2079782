"""A user's links and public lists, for "Download your data"."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select

from app.links.models import Link, PublicList
from app.site import PersonalDataSection
from quart_upsun.database import Database, pool_timeout

BATCH_SIZE = 500  # rows per query, a few hundred bytes each
# Longer than the default: a download that has started should not fail on a busy pool.
POOL_TIMEOUT_SECONDS = 30.0


class ExportedLink(NamedTuple):
    """An exported link, with the field names of the API."""

    id: int
    url: str
    title: str
    description: str
    tags: list[str]
    archived: bool
    created_at: datetime
    updated_at: datetime


async def iterate_links(database: Database, user_id: int) -> AsyncIterator[list[ExportedLink]]:
    """Yield all links of a user in batches, oldest first.

    No connection is held between batches, however slow the client is. Links that are added or
    deleted during the export may be included or not; every other link is included exactly once.

    Raises:
        DatabaseUnavailableError: possibly after some batches; the client must be able to tell that
            the file is incomplete.
    """
    pool_timeout.set(POOL_TIMEOUT_SECONDS)
    columns = [getattr(Link, name) for name in ExportedLink._fields]
    page = select(*columns).where(Link.user_id == user_id).order_by(Link.id).limit(BATCH_SIZE)
    last = 0
    while True:
        async with database.read() as session:
            rows = [ExportedLink(*row) for row in await session.execute(page.where(Link.id > last))]
        if rows:
            yield rows
        if len(rows) < BATCH_SIZE:
            break
        last = rows[-1].id


def link_to_json(row: ExportedLink) -> dict[str, Any]:
    """Return a link as a JSON object."""
    times = {
        "created_at": format_timestamp(row.created_at),
        "updated_at": format_timestamp(row.updated_at),
    }
    return {**row._asdict(), **times}


def format_timestamp(time: datetime) -> str:
    """Format a time as RFC 3339."""
    return time.isoformat().replace("+00:00", "Z")


async def export_links(database: Database, user_id: int) -> AsyncIterator[Sequence[dict[str, Any]]]:
    async for rows in iterate_links(database, user_id):
        yield [link_to_json(row) for row in rows]


async def export_public_lists(
    database: Database, user_id: int
) -> AsyncIterator[Sequence[dict[str, Any]]]:
    mine = select(PublicList.tag, PublicList.created_at).where(PublicList.user_id == user_id)
    async with database.read() as session:
        rows = (await session.execute(mine.order_by(PublicList.tag))).all()
    yield [{"tag": row.tag, "published_at": row.created_at.isoformat()} for row in rows]


SECTIONS = (
    PersonalDataSection("links", export_links, ("links", "link_tags")),
    PersonalDataSection("public_lists", export_public_lists, ("public_lists",)),
)
