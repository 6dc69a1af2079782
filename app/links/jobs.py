"""What is done about links in the background: fetching pages, and tidying up."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from typing import Any

from quart import Quart, current_app
from sqlalchemy import bindparam, case, cast, delete, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import TSVECTOR, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.dml import ReturningUpdate

from app.links import index, words
from app.links.fetching import ICON_BYTES, Fetched, Fetcher
from app.links.models import Icon, Link
from app.links.network import FetchFailed
from app.links.pages import Page, describe, icon_type
from app.links.turns import CALL_SECONDS, HostBusyError, Visit
from quart_upsun.database import Base, Database, DatabaseUnavailableError
from quart_upsun.database.statements import Statement
from quart_upsun.jobs.cleanup import BATCH, TIMEOUT, forget
from quart_upsun.jobs.queue import (
    JobError,
    JobPostponedError,
    Running,
    Schedule,
    Task,
    enqueue_many,
    make_due,
)
from quart_upsun.live.events import publish
from quart_upsun.logging import get_logger
from quart_upsun.time_limits import paused

log = get_logger(__name__)

ICONS_TRIED = 3
ICON_PATIENCE = 5.0  # seconds that a page waits for the busy host of its icon
IN_NO_HURRY = -10  # the priority of fetches that nobody waits for
REFETCH_DAYS = 30
REFETCHED_AT_ONCE = 500

# Of the table: what is built of the model takes a job's time at the processor twice.
_links = Base.metadata.tables[Link.__tablename__]
URL = Statement(
    select(_links.c.url, _links.c.user_id).where(_links.c.id == bindparam("link")), tuple
)

# A change locks the link before it asks for a fetch, so a fetch does the same before it ends.
LOCK = select(_links.c.id).where(_links.c.id == bindparam("link")).with_for_update(key_share=True)


def init_app(app: Quart) -> None:
    """Give the jobs something to fetch with."""

    @app.while_serving
    async def fetcher() -> AsyncGenerator[None, None]:
        async with Fetcher() as app.extensions["fetcher"]:
            calling = asyncio.create_task(_keep_calling(app))
            yield
            calling.cancel()


async def ask(session: AsyncSession, ids: Sequence[int], *, priority: int | None = None) -> None:
    """Ask for the pages of links to be fetched; one that is waited for already is not asked twice.

    Args:
        session: of `write()`.
        ids: of the links.
        priority: of the jobs; by default that of something a user waits for.
    """
    if not ids:
        return
    await enqueue_many(
        session,
        FETCH if priority is None else replace(FETCH, priority=priority),
        [{"link": each} for each in ids],
        keys=[f"{FETCH.name} {each}" for each in ids],
    )


async def fetch(running: Running) -> None:
    """Fetch a link's page and its icon in one turn of the host, and keep what it says of itself.

    If the host has no turn free, the job goes back into the queue until it is called.
    """
    link_id = running.data["link"]
    async with running.database.direct() as connection:
        found = await URL.rows(connection, link=link_id)
    if not found:  # deleted meanwhile
        return
    fetcher: Fetcher = current_app.extensions["fetcher"]
    url, owner = found[0]
    try:
        page, icon = await _visit(running.database, fetcher, url)
        await _keep_page(running, link_id, page, icon)
    except HostBusyError as busy:
        wait = fetcher.turns.longest_wait(busy.host)
        raise JobPostponedError(
            wait, partial(_line_up, running, fetcher, busy.host, owner)
        ) from None
    except FetchFailed as error:
        await _note_failure(running, link_id, error)


async def _visit(database: Database, fetcher: Fetcher, url: str) -> tuple[Page, Fetched | None]:
    """Fetch a page and its icon in one turn, then let the next job have it.

    Raises:
        FetchFailed: there is no page, or it cannot be fetched.
        HostBusyError: there is no turn free.
    """
    visit = Visit(fetcher.turns)
    try:
        with visit:
            fetched = await fetcher.get(url, truncate=True, visit=visit, patience=0)
            with paused():  # until one of the few threads is free
                page = await asyncio.to_thread(
                    describe, fetched.content, fetched.charset, fetched.url
                )
            return page, await _icon(fetcher, page, visit)
    finally:
        for host in visit.hosts:
            await _call_next(database, fetcher, host)


async def _keep_page(running: Running, link_id: int, page: Page, icon: Fetched | None) -> None:
    async with running.complete(LOCK, {"link": link_id}) as session:
        values: dict[str, Any] = {"description": page.description or "", "fetch_error": None}
        if icon is not None:
            values["icon_digest"] = await _keep(session, icon)
        if page.title:
            values["title"] = page.title
        await _change(session, link_id, **values)


async def _line_up(running: Running, fetcher: Fetcher, host: str, owner: int) -> None:
    """Let a job that is back in the queue be called by a fetch that leaves the host."""
    fetcher.turns.line_up(host, running.id, priority=running.priority, owner=owner)
    if fetcher.turns.has_room(host):  # since a moment ago: nobody else is going to call
        await _call_next(running.database, fetcher, host)


async def _call_next(database: Database, fetcher: Fetcher, host: str) -> None:
    """Let the first job in the line of a host run, if there is one."""
    with suppress(DatabaseUnavailableError):  # then it is due by itself, a little later
        while (job := fetcher.turns.next_in_line(host)) is not None:
            if await make_due(database, [job]):  # else another process has it, or it is deleted
                return


async def _keep_calling(app: Quart) -> None:
    """Keep the lines moving whose called job did not come, or went to another process."""
    while True:
        await asyncio.sleep(CALL_SECONDS)
        # Looked up each time: tests put their own one there.
        fetcher: Fetcher = app.extensions["fetcher"]
        for host in fetcher.turns.idle():
            try:
                await _call_next(app.extensions["quart_upsun"].database, fetcher, host)
            except Exception:  # the next host, and the next second, may have more luck
                log.exception("the next job of a host could not be called")


async def _note_failure(running: Running, link_id: int, error: FetchFailed) -> None:
    """Tell the link's owner; not the administrators, whom dead pages are no matter of.

    Raises:
        Failed: to try again.
    """
    sentence = str(error)
    if error.permanent or running.attempt > len(FETCH.back_off):
        async with running.complete(LOCK, {"link": link_id}) as session:
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
    raise JobError(sentence, "not fetched")


async def _change(session: AsyncSession, link_id: int, **values: Any) -> None:
    """Write down how a fetch ended, and tell the owner's pages."""
    given = {f"new_{name}": value for name, value in values.items()}
    for name in TEXTS:
        if name in values:
            given[f"words_{name}"] = words.vector(**{index.WEIGHTS[name]: values[name]})
    owner = await session.scalar(_changing(*sorted(values)), given | {"link": link_id})
    if owner is not None:
        await publish(session, owner, "link", id=link_id)


# What a fetch may change of the texts that are searched.
TEXTS = ("title", "description")


@cache
def _changing(*names: str) -> ReturningUpdate[int]:
    """Return the statement of `_change`; to build it costs as much as to run it."""
    c = _links.c
    given: dict[str, ColumnElement[Any]] = {name: bindparam(f"new_{name}") for name in names}
    changed = {index.WEIGHTS[name]: name for name in TEXTS if name in names}
    for name in changed.values():  # what the owner has given stays
        given[name] = case((c[f"{name}_given"], c[name]), else_=given[name])
    if changed:
        owner = cast(func.concat("'", index.owner(""), c.user_id, "'"), TSVECTOR)
        new = (
            case(
                (c[f"{name}_given"], index.filtered(c.search, weight)),
                else_=cast(bindparam(f"words_{name}"), TSVECTOR),
            )
            for weight, name in changed.items()
        )
        given["search"] = index.concatenated(owner, *new, index.without(c.search, changed))
    return (
        update(_links)
        .where(c.id == bindparam("link"))
        .values(**given, fetched_at=func.now(), updated_at=func.now(), version=c.version + 1)
        .returning(c.user_id)
    )


async def _icon(fetcher: Fetcher, page: Page, visit: Visit) -> Fetched | None:
    """Return the first icon of a page that is an image."""
    for url in page.icons[:ICONS_TRIED]:
        try:
            fetched = await fetcher.get(
                url,
                accept="image/*",
                max_bytes=ICON_BYTES,
                content_types=None,
                visit=visit,
                patience=ICON_PATIENCE,
            )
        except (FetchFailed, HostBusyError):
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
    """Ask for the pages whose last attempt is longest ago, the same number for each owner.

    The attempt is recorded here, before it is made: a page that never answers, or breaks the job,
    is not asked for again in the next round.
    """
    async with running.database.read() as session:
        owners = (await session.scalars(OWNERS, {"limit": REFETCHED_AT_ONCE})).all()
        each = -(-REFETCHED_AT_ONCE // max(len(owners), 1))
        ids = (await session.scalars(DUE, {"owners": owners, "limit": each})).all()
    async with running.complete() as session:
        attempt = update(_links).where(_links.c.id.in_(ids)).values(attempted_at=func.now())
        await session.execute(attempt)
        await ask(session, ids, priority=IN_NO_HURRY)


# New links are asked for when they are saved.
_IS_DUE = f"""
    (attempted_at < now() - interval '{REFETCH_DAYS} days'
    OR attempted_at IS NULL AND created_at < now() - interval '1 hour')
"""
# Those whose turn is longest ago; one look into the index for each owner of links.
OWNERS = text(
    f"""
    WITH RECURSIVE owner AS (
        (SELECT user_id FROM links ORDER BY user_id LIMIT 1)
        UNION ALL
        SELECT (SELECT user_id FROM links WHERE user_id > owner.user_id ORDER BY user_id LIMIT 1)
        FROM owner WHERE owner.user_id IS NOT NULL
    )
    SELECT owner.user_id FROM owner CROSS JOIN LATERAL (
        SELECT attempted_at FROM links WHERE user_id = owner.user_id AND {_IS_DUE}
        ORDER BY attempted_at NULLS FIRST LIMIT 1
    ) AS oldest
    ORDER BY oldest.attempted_at NULLS FIRST LIMIT :limit
    """  # noqa: S608 only constants of this module
)
DUE = text(
    f"""
    SELECT link.id FROM unnest(CAST(:owners AS bigint[])) AS owner (user_id) CROSS JOIN LATERAL (
        SELECT id FROM links WHERE user_id = owner.user_id AND {_IS_DUE}
        ORDER BY attempted_at NULLS FIRST LIMIT :limit
    ) AS link
    """  # noqa: S608 only constants of this module
)


async def give_up(running: Running, words: str) -> None:
    """Tell the owner of a link whose fetch failed for an unknown reason every time."""
    async with running.database.write() as session:
        await _change(session, running.data["link"], fetch_error="The page could not be read.")


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


FETCH = Task(
    "links.fetch",
    fetch,
    timeout=120,  # more than a page and its icons can take
    back_off=(60, 600, 3600),
    priority=10,
    is_kept=False,  # what a page does is a matter of its link's owner
    given_up=give_up,
)
REFETCH = Task("links.refetch", refetch)
REMOVE_ICONS = Task("links.remove_icons", remove_icons, timeout=TIMEOUT)

TASKS = (FETCH,)
SCHEDULES = (Schedule(REFETCH, "*/15 * * * *"), Schedule(REMOVE_ICONS, "40 3 * * *"))
