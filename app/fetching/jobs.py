"""Fetch the pages of links in background jobs, and refetch them from time to time."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from quart import Quart, current_app
from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import hooks, search_index
from app.links.models import Icon, Link
from quart_upsun.database import Base
from quart_upsun.fetching import (
    Fetched,
    Fetcher,
    FetchError,
    PageMetadata,
    fetch_page,
    image_type,
    turn,
)
from quart_upsun.jobs.queue import JobContext, JobError, Schedule, Task, enqueue_many

BULK_PRIORITY = -10  # after fetches that a user waits for
REFETCH_DAYS = 30
REFETCH_BATCH = 500

# Built from the table: statements on the model double the CPU time of a job.
_links = Base.metadata.tables[Link.__tablename__]
SELECT_URL = select(_links.c.url, _links.c.user_id).where(_links.c.id == bindparam("link"))

# A change locks the link before it enqueues a fetch; a fetch takes the same lock first, which
# prevents deadlocks.
LOCK_LINK = (
    select(_links.c.id).where(_links.c.id == bindparam("link")).with_for_update(key_share=True)
)

# A fetch does not overwrite what the owner has entered.
SELECT_GIVEN_FIELDS = select(
    _links.c.user_id, _links.c.title_given, _links.c.description_given
).where(_links.c.id == bindparam("link"))


def init_app(app: Quart) -> None:
    """Fetch pages on `metadata_requested`, and show the result with each link."""
    hooks.metadata_requested.connect(enqueue_requested_fetches)
    hooks.add_template(app, "state", "fetching/state.html")
    hooks.add_template(app, "actions", "fetching/action.html")


async def enqueue_requested_fetches(
    _: object, *, session: AsyncSession, link_ids: Sequence[int], in_bulk: bool
) -> None:
    """Enqueue a fetch for each link that needs metadata; see `app.links.hooks`."""
    await enqueue_fetches(session, link_ids, priority=BULK_PRIORITY if in_bulk else None)


async def enqueue_fetches(
    session: AsyncSession, ids: Sequence[int], *, priority: int | None = None
) -> None:
    """Enqueue a fetch for each link, unless one is already queued.

    Args:
        session: of `write()`.
        ids: ids of the links.
        priority: priority of the jobs; defaults to that of a page a user waits for.
    """
    if not ids:
        return
    await enqueue_many(
        session,
        FETCH_TASK if priority is None else replace(FETCH_TASK, priority=priority),
        [{"link": each} for each in ids],
        keys=[f"{FETCH_TASK.name} {each}" for each in ids],
    )


async def fetch_link(running: JobContext) -> None:
    """Fetch a link's page and icon, and store its title, description and icon."""
    link_id = running.data["link"]
    async with running.database.read() as session:
        found = (await session.execute(SELECT_URL, {"link": link_id})).one_or_none()
    if found is None:  # deleted meanwhile
        return
    url, owner = found
    fetcher: Fetcher = current_app.extensions["fetcher"]
    try:
        async with turn(running, fetcher, owner=owner) as visit:
            page, icon = await fetch_page(fetcher, url, visit)
    except FetchError as error:
        await _store_failure(running, link_id, error)
    else:
        await _store_page(running, link_id, page, icon)


async def _store_page(
    running: JobContext, link_id: int, page: PageMetadata, icon: Fetched | None
) -> None:
    async with running.complete(LOCK_LINK, {"link": link_id}) as session:
        values: dict[str, Any] = {"description": page.description or "", "fetch_error": None}
        if icon is not None:
            values["icon_digest"] = await _store_icon(session, icon)
        if page.title:
            values["title"] = page.title
        await _store_result(session, link_id, **values)


async def _store_failure(running: JobContext, link_id: int, error: FetchError) -> None:
    """Store the error for the link's owner. Broken pages are not reported to administrators.

    Raises:
        JobError: the fetch can be retried.
    """
    message = str(error)
    if error.permanent or running.attempt > len(FETCH_TASK.backoff_seconds):
        async with running.complete(LOCK_LINK, {"link": link_id}) as session:
            await _store_result(session, link_id, fetch_error=message)
        return
    async with running.database.write() as session:
        owner = await session.scalar(
            update(_links)
            .where(_links.c.id == link_id)
            .values(fetch_error=message)
            .returning(_links.c.user_id)
        )
        if owner is not None:
            await hooks.announce_change(session, owner, "link", id=link_id)
    raise JobError(message, "not fetched")


async def _store_result(session: AsyncSession, link_id: int, **values: Any) -> None:
    """Store the result of a fetch, and notify the owner's open pages."""
    link = (await session.execute(SELECT_GIVEN_FIELDS, {"link": link_id})).one_or_none()
    if link is None:  # deleted meanwhile
        return
    if link.title_given:
        values.pop("title", None)
    if link.description_given:
        values.pop("description", None)
    if texts := {name: values[name] for name in ("title", "description") if name in values}:
        values["search"] = search_index.updated_search_vector(link.user_id, Link.search, **texts)
    await session.execute(
        update(_links)
        .where(_links.c.id == link_id)
        .values(
            **values,
            fetched_at=func.now(),
            updated_at=func.now(),
            version=_links.c.version + 1,
        )
    )
    await hooks.announce_change(session, link.user_id, "link", id=link_id)


async def _store_icon(session: AsyncSession, icon: Fetched) -> bytes:
    digest = hashlib.sha256(icon.content).digest()
    values = {
        "digest": digest,
        "content": icon.content,
        "content_type": image_type(icon.content),
    }
    await session.execute(insert(Icon).values(values).on_conflict_do_nothing())
    return digest


async def enqueue_refetches(running: JobContext) -> None:
    """Enqueue a refetch of the links with the oldest attempt, the same number for each owner.

    The attempt is recorded before it is made, so a page that times out or crashes the job is not
    selected again in the next run.
    """
    async with running.database.read() as session:
        owners = (await session.scalars(SELECT_DUE_OWNERS, {"limit": REFETCH_BATCH})).all()
        per_owner = -(-REFETCH_BATCH // max(len(owners), 1))
        ids = (
            await session.scalars(SELECT_DUE_LINKS, {"owners": owners, "limit": per_owner})
        ).all()
    async with running.complete() as session:
        attempt = update(_links).where(_links.c.id.in_(ids)).values(attempted_at=func.now())
        await session.execute(attempt)
        await enqueue_fetches(session, ids, priority=BULK_PRIORITY)


# New links are fetched when they are saved.
_IS_DUE = f"""
    (attempted_at < now() - interval '{REFETCH_DAYS} days'
    OR attempted_at IS NULL AND created_at < now() - interval '1 hour')
"""
# The owners with the oldest due links; one index lookup for each owner.
SELECT_DUE_OWNERS = text(
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
SELECT_DUE_LINKS = text(
    f"""
    SELECT link.id FROM unnest(CAST(:owners AS bigint[])) AS owner (user_id) CROSS JOIN LATERAL (
        SELECT id FROM links WHERE user_id = owner.user_id AND {_IS_DUE}
        ORDER BY attempted_at NULLS FIRST LIMIT :limit
    ) AS link
    """  # noqa: S608 only constants of this module
)


async def record_final_failure(running: JobContext, error: str) -> None:
    """Store an error for the link's owner after the last retry has failed."""
    async with running.database.write() as session:
        await _store_result(
            session, running.data["link"], fetch_error="The page could not be read."
        )


FETCH_TASK = Task(
    "links.fetch",
    fetch_link,
    timeout=120,  # more than a page and its icons can take
    backoff_seconds=(60, 600, 3600),
    priority=10,
    is_kept_after_failure=False,  # the link's owner sees the error
    on_failure=record_final_failure,
)
REFETCH_TASK = Task("links.refetch", enqueue_refetches)

TASKS = (FETCH_TASK,)
SCHEDULES = (Schedule(REFETCH_TASK, "*/15 * * * *"),)
