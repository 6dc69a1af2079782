"""What is done about links in the background: fetching pages, and tidying up."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

from quart import Quart, current_app
from sqlalchemy import bindparam, case, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.dml import ReturningUpdate

from app.database import Base
from app.jobs.cleanup import BATCH, TIMEOUT, forget
from app.jobs.queue import Failed, Running, Schedule, Task, enqueue_many
from app.links.fetching import ICON_BYTES, Fetched, Fetcher
from app.links.models import Icon, Link
from app.links.network import FetchFailed
from app.links.pages import Page, describe, icon_type
from app.live.events import publish
from app.statements import Statement

ICONS_TRIED = 3
REFETCH_DAYS = 30
REFETCHED_AT_ONCE = 500

# Of the table: what is built of the model takes a job's time at the processor twice.
_links = Base.metadata.tables[Link.__tablename__]
URL = Statement(select(_links.c.url).where(_links.c.id == bindparam("link")), tuple)


def init_app(app: Quart) -> None:
    """Give the jobs something to fetch with."""

    @app.while_serving
    async def fetcher() -> AsyncGenerator[None, None]:
        async with Fetcher() as app.extensions["fetcher"]:
            yield


async def ask(session: AsyncSession, ids: Sequence[int], *, priority: int | None = None) -> None:
    """Ask for the pages of links to be fetched; one that is waited for already is not asked twice.

    Args:
        session: of `write()`.
        ids: of the links.
        priority: of the jobs; by default that of something a user waits for.
    """
    await enqueue_many(
        session,
        FETCH if priority is None else replace(FETCH, priority=priority),
        [{"link": each} for each in ids],
        keys=[f"{FETCH.name} {each}" for each in ids],
    )


async def fetch(running: Running) -> None:
    """Fetch a link's page, and keep what it says of itself."""
    link_id = running.data["link"]
    async with running.database.direct() as connection:
        found = await URL.rows(connection, link=link_id)
    if not found:  # deleted meanwhile
        return
    fetcher: Fetcher = current_app.extensions["fetcher"]
    try:
        fetched = await fetcher.get(found[0][0], truncate=True)
    except FetchFailed as error:
        await _note_failure(running, link_id, error)
        return
    page = await asyncio.to_thread(describe, fetched.content, fetched.charset, fetched.url)
    icon = await _icon(fetcher, page)
    async with running.complete() as session:
        values: dict[str, Any] = {"description": page.description or "", "fetch_error": None}
        if icon is not None:
            values["icon_digest"] = await _keep(session, icon)
        if page.title:
            values["title"] = page.title
        await _change(session, link_id, **values)


async def _note_failure(running: Running, link_id: int, error: FetchFailed) -> None:
    """Tell the link's owner; not the administrators, whom dead pages are no matter of.

    Raises:
        Failed: to try again.
    """
    sentence = str(error)
    if error.permanent or running.attempt > len(FETCH.back_off):
        async with running.complete() as session:
            await _change(session, link_id, fetch_error=sentence)
        return
    async with running.database.write() as session:
        owner = await session.scalar(
            update(Link)
            .where(Link.id == link_id)
            .values(fetch_error=sentence)
            .returning(Link.user_id)
            .execution_options(synchronize_session=False)
        )
        if owner is not None:
            await publish(session, owner, "link", id=link_id)
    raise Failed(sentence, "not fetched")


async def _change(session: AsyncSession, link_id: int, **values: Any) -> None:
    """Write down how a fetch ended, and tell the owner's pages."""
    given = {f"new_{name}": value for name, value in values.items()}
    owner = await session.scalar(_changing(*sorted(values)), given | {"link": link_id})
    if owner is not None:
        await publish(session, owner, "link", id=link_id)


@cache
def _changing(*names: str) -> ReturningUpdate[int]:
    """Return the statement of `_change`; to build it costs as much as to run it."""
    c = _links.c
    given: dict[str, ColumnElement[Any]] = {name: bindparam(f"new_{name}") for name in names}
    for name in {"title", "description"} & given.keys():
        given[name] = case((c[f"{name}_given"], c[name]), else_=given[name])
    return (
        update(_links)
        .where(c.id == bindparam("link"))
        .values(**given, fetched_at=func.now(), updated_at=func.now(), version=c.version + 1)
        .returning(c.user_id)
    )


async def _icon(fetcher: Fetcher, page: Page) -> Fetched | None:
    """Return the first icon of a page that is an image."""
    for url in page.icons[:ICONS_TRIED]:
        try:
            fetched = await fetcher.get(
                url, accept="image/*", max_bytes=ICON_BYTES, content_types=None
            )
        except FetchFailed:
            continue
        if icon_type(fetched.content):
            return fetched
    return None


async def _keep(session: AsyncSession, icon: Fetched) -> bytes:
    digest = hashlib.sha256(icon.content).digest()
    values = {
        "digest": digest,
        "content": icon.content,
        "content_type": icon_type(icon.content),
    }
    await session.execute(insert(Icon).values(values).on_conflict_do_nothing())
    return digest


async def refetch(running: Running) -> None:
    """Ask for the pages that were fetched longest ago, or never: those of imports."""
    old = func.now() - timedelta(days=REFETCH_DAYS)
    forgotten = func.now() - timedelta(hours=1)
    due = (
        select(Link.id)
        .where(
            or_(
                Link.fetched_at < old,
                Link.fetched_at.is_(None) & (Link.created_at < forgotten),
            )
        )
        .order_by(Link.fetched_at.nulls_first())
        .limit(REFETCHED_AT_ONCE)
    )
    async with running.database.read() as session:
        ids = (await session.scalars(due)).all()
    async with running.complete() as session:
        await ask(session, ids, priority=0)


async def remove_icons(running: Running) -> None:
    """Remove icons that no link has any more."""
    idle = (
        select(Icon.digest)
        .where(
            Icon.created_at < func.now() - timedelta(days=1),
            ~exists().where(Link.icon_digest == Icon.digest),
        )
        .limit(BATCH)
    )
    await forget(running.database, delete(Icon).where(Icon.digest.in_(idle)))


FETCH = Task("links.fetch", fetch, timeout=60, back_off=(60, 600, 3600), priority=10)
REFETCH = Task("links.refetch", refetch)
REMOVE_ICONS = Task("links.remove_icons", remove_icons, timeout=TIMEOUT)

TASKS = (FETCH,)
SCHEDULES = (Schedule(REFETCH, "*/15 * * * *"), Schedule(REMOVE_ICONS, "40 3 * * *"))
