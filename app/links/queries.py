"""Read and change a user's links. Functions take a session and plain values, and filter by owner.

Functions that change a link also tell the owner's open pages, and other features (`hooks`), in the
same transaction.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, case, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import search_index
from app.links.hooks import request_metadata
from app.links.models import Icon, Link, LinkTag
from quart_upsun.database import Base
from quart_upsun.database.statements import Source, Statement
from quart_upsun.live.events import publish

MAX_LINKS = 100_000  # of one user; an index of them is read when one is saved
MAX_TAGS_SHOWN = 200


class LinkItem(NamedTuple):
    """A link as pages and the API show it."""

    id: int
    url: str
    title: str
    description: str
    tags: list[str]
    archived: bool
    icon_digest: bytes | None
    created_at: datetime
    updated_at: datetime
    version: int
    fetched_at: datetime | None
    fetch_error: str | None

    @property
    def label(self) -> str:
        """What it is called where it has no title yet."""
        return self.title or self.url.partition("://")[2].rstrip("/")

    @property
    def host(self) -> str:
        return self.url.partition("://")[2].partition("/")[0]

    @property
    def href(self) -> str:
        """Where it leads, whatever came into the table: `javascript:` would be a script."""
        return self.url if self.url.startswith(("https://", "http://")) else "about:blank"

    @property
    def is_pending(self) -> bool:
        """Whether its page is being fetched for the first time."""
        return self.fetched_at is None


COLUMNS = [getattr(Link, name) for name in LinkItem._fields]


TOO_MANY_LINKS = (
    f"You have {MAX_LINKS:,} links, which is the most that an account can have. Delete some first."
)


class TooManyLinksError(Exception):
    """The user has as many links as an account may have."""


class VersionConflictError(Exception):
    """The link is no longer at the version that the change was made for."""


async def save_link(
    session: AsyncSession, user_id: int, url: str, *, title: str = "", tags: Sequence[str] = ()
) -> tuple[LinkItem, bool]:
    """Save a link; return it, and whether it is new. One that is there already stays as it is.

    Args:
        session: of `write()`.
        user_id: whose.
        url: normalised.
        title: empty to take the page's.
        tags: as `addresses.tags` returns them.

    Raises:
        TooManyLinksError: the user has `MAX_LINKS` already.
    """
    values = {
        "user_id": user_id,
        "url": url,
        "title": title,
        "title_given": bool(title),
        "tags": list(tags),
        "attempted_at": func.now(),
        "search": search_index.search_vector(user_id, url=url, title=title, tags=tags),
    }
    new = insert(Link).values(values).on_conflict_do_nothing().returning(*COLUMNS)
    old = _select_links(user_id).where(Link.url == url)
    while (row := (await session.execute(new)).one_or_none()) is None:
        if (row := (await session.execute(old)).one_or_none()) is not None:
            return LinkItem(*row), False
        # Deleted between the two statements: now there is room for it.
    if await remaining_links(session, user_id) < 0:
        raise TooManyLinksError
    item = LinkItem(*row)
    await request_metadata(session, [item.id])
    await publish(session, user_id, "link", id=item.id)
    return item, True


async def remaining_links(session: AsyncSession, user_id: int) -> int:
    """Return how many links a user may add; negative if there are too many.

    Of two transactions that add at once neither sees the other's: together they may add a few more.
    """
    few = select(Link.id).where(Link.user_id == user_id).limit(MAX_LINKS + 1).subquery()
    return MAX_LINKS - (await session.scalar(select(func.count()).select_from(few)) or 0)


async def get_link(
    session: AsyncSession, user_id: int, link_id: int, *, lock: bool = False
) -> LinkItem | None:
    """Return a link, or None if the user has none of this number.

    With `lock`, nobody else changes it until the transaction ends.
    """
    query = _select_links(user_id).where(Link.id == link_id)
    row = (await session.execute(query.with_for_update() if lock else query)).one_or_none()
    return LinkItem(*row) if row is not None else None


async def update_link(
    session: AsyncSession, user_id: int, link_id: int, *, version: int | None = None, **values: Any
) -> LinkItem | None:
    """Change columns of a link: title, description, tags, archived.

    Returns it as it is now, or None if the user has none of this number.

    Args:
        session: of `write()`.
        user_id: whose.
        link_id: which.
        version: the one that is to be changed; None for whichever it is at.
        values: by column. An empty title or description is the page's again, once it was fetched
            anew.

    Raises:
        VersionConflictError: it is at another version.
    """
    for name in {"title", "description"} & values.keys():
        # A form that sends the page's own text back has given none.
        is_same, was_given = (getattr(Link, name) == values[name], getattr(Link, f"{name}_given"))
        values[f"{name}_given"] = case((is_same, was_given), else_=bool(values[name]))
    if changed_texts := values.keys() & search_index.WEIGHTS.keys():
        values["search"] = search_index.updated_search_vector(
            user_id, Link.search, **{name: values[name] for name in changed_texts}
        )
    mine = (Link.id == link_id, Link.user_id == user_id)
    at = () if version is None else (Link.version == version,)
    changed = (
        update(Link)
        .where(*mine, *at)
        .values(**values, version=Link.version + 1, updated_at=func.now())
        .returning(*COLUMNS)
        .execution_options(synchronize_session=False)
    )
    row = (await session.execute(changed)).one_or_none()
    if row is None:
        if version is not None and await session.scalar(select(Link.id).where(*mine)):
            raise VersionConflictError
        return None
    item = LinkItem(*row)
    if "" in (values.get("title"), values.get("description")):
        await request_metadata(session, [item.id])
    await publish(session, user_id, "link", id=item.id)
    return item


async def delete_link(session: AsyncSession, user_id: int, link_id: int) -> bool:
    """Delete a link; return False if the user has none of this number."""
    gone = delete(Link).where(Link.id == link_id, Link.user_id == user_id).returning(Link.id)
    if await session.scalar(gone) is None:
        return False
    await publish(session, user_id, "link", id=link_id)
    return True


async def list_links(
    source: Source,
    user_id: int,
    *,
    archived: bool | None = None,
    tag: str | None = None,
    before: int | None = None,
    limit: int,
) -> list[LinkItem]:
    """Return links, the newest first, in one query by an index: no page costs more than the first.

    Args:
        source: for the query.
        user_id: whose.
        archived: only those in this state; None for all.
        tag: only those with this tag.
        before: the id of the last one on the page before.
        limit: how many at most.
    """
    statement = _list_statement(tag is not None, archived is not None, before is not None)
    return await statement.rows(
        source, user_id=user_id, archived=archived, tag=tag, before=before, count=limit
    )


@cache
def _list_statement(by_tag: bool, by_state: bool, has_cursor: bool) -> Statement[LinkItem]:
    """Return the statement of `page`, which is asked so often that each form is built once."""
    # Of the tables, because entities cost more than all the rest where only columns are wanted.
    links, link_tags = (Base.metadata.tables[each.__tablename__] for each in (Link, LinkTag))
    query = select(*(links.c[name] for name in LinkItem._fields))
    query = query.where(links.c.user_id == bindparam("user_id")).order_by(links.c.id.desc())
    # What decides which rows are on the page, and its columns that are called the same.
    by, number = (link_tags, link_tags.c.link_id) if by_tag else (links, links.c.id)
    chosen = [by.c.user_id == bindparam("user_id")]
    if by_tag:
        chosen.append(link_tags.c.tag == bindparam("tag"))
    if by_state:
        chosen.append(by.c.archived == bindparam("archived"))
    if has_cursor:
        chosen.append(number < bindparam("before"))
    if not by_tag:
        return Statement(query.where(*chosen[1:]).limit(bindparam("count")), LinkItem._make)
    ids = select(number).where(*chosen).order_by(number.desc()).limit(bindparam("count"))
    found = ids.subquery()
    return Statement(query.join(found, found.c.link_id == links.c.id), LinkItem._make)


async def list_tags(
    source: Source, user_id: int, *, after: str = "", limit: int = MAX_TAGS_SHOWN
) -> list[str]:
    """Return the tags a user has, in alphabetical order.

    The index is read at one place for each tag, not for each link.

    Args:
        source: for the query.
        user_id: whose.
        after: the last tag on the previous page; empty for the first page.
        limit: how many at most.
    """
    return await SELECT_TAGS.rows(source, user_id=user_id, after=after, limit=limit)


SELECT_TAGS: Statement[str] = Statement(
    text(
        """
        WITH RECURSIVE known AS (
            (
                SELECT tag FROM link_tags
                WHERE user_id = :user_id AND tag > :after ORDER BY tag LIMIT 1
            )
            UNION ALL
            SELECT (
                SELECT tag FROM link_tags
                WHERE user_id = :user_id AND tag > known.tag ORDER BY tag LIMIT 1
            ) FROM known WHERE known.tag IS NOT NULL
        )
        SELECT tag FROM known WHERE tag IS NOT NULL LIMIT :limit
        """
    ),
    lambda values: next(iter(values)),
)


async def get_icon(session: AsyncSession, digest: bytes) -> tuple[bytes, str] | None:
    """Return the content of an icon and its media type; it is nobody's in particular."""
    found = select(Icon.content, Icon.content_type).where(Icon.digest == digest)
    row = (await session.execute(found)).one_or_none()
    return (row.content, row.content_type) if row is not None else None


def _select_links(user_id: int) -> Select[Any]:
    return select(*COLUMNS).where(Link.user_id == user_id)
