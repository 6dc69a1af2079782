"""Read and change a user's links. Functions take a session and plain values, and filter by owner.

Functions that change a link also notify the owner's open pages, and other features through `hooks`,
in the same transaction.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, case, delete, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import search_index
from app.links.hooks import announce_change, request_metadata
from app.links.models import Icon, Link, LinkTag
from quart_upsun.database import Base
from quart_upsun.database.statements import Source, Statement, only_column

MAX_LINKS = 100_000  # per user; saving a link counts them by an index
MAX_TAGS_SHOWN = 200
MAX_ID = 2**63 - 1


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
        """The title, or the URL without its scheme while there is no title."""
        return self.title or self.url.partition("://")[2].rstrip("/")

    @property
    def host(self) -> str:
        return self.url.partition("://")[2].partition("/")[0]

    @property
    def href(self) -> str:
        """The URL, if it is safe to link to: `javascript:` URLs would run a script."""
        return self.url if self.url.startswith(("https://", "http://")) else "about:blank"

    @property
    def is_pending(self) -> bool:
        """Whether its page has not been fetched yet."""
        return self.fetched_at is None


COLUMNS = [getattr(Link, name) for name in LinkItem._fields]


TOO_MANY_LINKS = f"You have reached the limit of {MAX_LINKS:,} links. Delete some links first."


class TooManyLinksError(Exception):
    """The user already has `MAX_LINKS` links."""


class VersionConflictError(Exception):
    """The link has been changed since the given version."""


async def save_link(
    session: AsyncSession, user_id: int, url: str, *, title: str = "", tags: Sequence[str] = ()
) -> tuple[LinkItem, bool]:
    """Save a link; return it, and whether it is new. An existing link stays unchanged.

    Args:
        session: of `write()`.
        user_id: the owner.
        url: normalized.
        title: empty to use the title of the page.
        tags: as `tags.parse_tags` returns them.

    Raises:
        TooManyLinksError: the user already has `MAX_LINKS` links.
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
        # Deleted between the two statements: insert again.
    if await remaining_links(session, user_id) < 0:
        raise TooManyLinksError
    item = LinkItem(*row)
    await request_metadata(session, [item.id])
    await announce_change(session, user_id, "link", id=item.id)
    return item, True


async def remaining_links(session: AsyncSession, user_id: int) -> int:
    """Return how many links a user may still add; negative if there are too many.

    Concurrent transactions do not see each other's links, so together they may exceed the limit.
    """
    counted = select(Link.id).where(Link.user_id == user_id).limit(MAX_LINKS + 1).subquery()
    return MAX_LINKS - (await session.scalar(select(func.count()).select_from(counted)) or 0)


async def get_link(
    session: AsyncSession, user_id: int, link_id: int, *, lock: bool = False
) -> LinkItem | None:
    """Return a link, or None if the user has no link with this id.

    With `lock`, the row stays locked until the transaction ends.
    """
    query = _select_links(user_id).where(Link.id == link_id)
    row = (await session.execute(query.with_for_update() if lock else query)).one_or_none()
    return LinkItem(*row) if row is not None else None


async def update_link(
    session: AsyncSession, user_id: int, link_id: int, *, version: int | None = None, **values: Any
) -> LinkItem | None:
    """Update columns of a link: title, description, tags, archived.

    Returns the updated link, or None if the user has no link with this id.

    Args:
        session: of `write()`.
        user_id: the owner.
        link_id: the link's id.
        version: the version that the change is based on; None to update any version.
        values: new values by column name. An empty title or description is replaced by the page's
            own with the next fetch.

    Raises:
        VersionConflictError: the link has another version.
    """
    for name in {"title", "description"} & values.keys():
        # A form that sends back the fetched text does not count as the owner's own.
        is_same, was_given = (getattr(Link, name) == values[name], getattr(Link, f"{name}_given"))
        values[f"{name}_given"] = case((is_same, was_given), else_=bool(values[name]))
    if changed_texts := values.keys() & search_index.WEIGHTS.keys():
        values["search"] = search_index.updated_search_vector(
            user_id, Link.search, **{name: values[name] for name in changed_texts}
        )
    mine = (Link.id == link_id, Link.user_id == user_id)
    same_version = () if version is None else (Link.version == version,)
    changed = (
        update(Link)
        .where(*mine, *same_version)
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
    await announce_change(session, user_id, "link", id=item.id)
    return item


async def delete_link(session: AsyncSession, user_id: int, link_id: int) -> bool:
    """Delete a link; return False if the user has no link with this id."""
    deleted = delete(Link).where(Link.id == link_id, Link.user_id == user_id).returning(Link.id)
    if await session.scalar(deleted) is None:
        return False
    await announce_change(session, user_id, "link", id=link_id)
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
    """Return links, newest first, by keyset pagination: every page costs the same.

    Args:
        source: for the query.
        user_id: the owner.
        archived: filter by state; None for all links.
        tag: filter by tag.
        before: cursor, the id of the last link on the previous page.
        limit: maximum number of links.
    """
    statement = _list_statement(tag is not None, archived is not None)
    return await statement.rows(
        source,
        user_id=user_id,
        archived=archived,
        tag=tag,
        before=MAX_ID if before is None else before,
        count=limit,
    )


@cache
def _list_statement(by_tag: bool, by_state: bool) -> Statement[LinkItem]:
    """Return the statement of `list_links`; each variant is built once, as it runs often."""
    # From tables: selecting columns of entities would cost more than the rest of the request.
    links, link_tags = (Base.metadata.tables[each.__tablename__] for each in (Link, LinkTag))
    # The table that selects the rows of the page, and its column with the link's id.
    by, link_id = (link_tags, link_tags.c.link_id) if by_tag else (links, links.c.id)
    names = ["user_id", *(["tag"] if by_tag else []), *(["archived"] if by_state else [])]
    keys = [by.c[name] for name in names]
    values = [bindparam(key.name, type_=key.type) for key in keys]
    before = bindparam("before", type_=link_id.type)
    # Rows instead of `user_id = :user_id`: with that, PostgreSQL may walk all users' links from the
    # newest on, which takes long for a user who has saved none recently.
    page = (
        tuple_(*keys) >= tuple_(*values),
        tuple_(*keys, link_id) < tuple_(*values, before),
    )
    order = [column.desc() for column in (*keys, link_id)]
    columns = [links.c[name] for name in LinkItem._fields]
    if not by_tag:
        query = select(*columns).where(*page).order_by(*order).limit(bindparam("count"))
        return Statement(query, LinkItem._make)
    found = select(link_id).where(*page).order_by(*order).limit(bindparam("count")).subquery()
    query = select(*columns).join(found, found.c.link_id == links.c.id)
    query = query.where(links.c.user_id == values[0]).order_by(links.c.id.desc())
    return Statement(query, LinkItem._make)


async def list_tags(
    source: Source, user_id: int, *, after: str = "", limit: int = MAX_TAGS_SHOWN
) -> list[str]:
    """Return the tags a user has, in alphabetical order.

    It is a loose index scan: one index lookup for each tag instead of each link.

    Args:
        source: for the query.
        user_id: the owner.
        after: the last tag on the previous page; empty for the first page.
        limit: maximum number of tags.
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
    only_column,
)


async def get_icon(session: AsyncSession, digest: bytes) -> tuple[bytes, str] | None:
    """Return the content and media type of an icon, which may be shared by many users."""
    found = select(Icon.content, Icon.content_type).where(Icon.digest == digest)
    row = (await session.execute(found)).one_or_none()
    return (row.content, row.content_type) if row is not None else None


def _select_links(user_id: int) -> Select[Any]:
    return select(*COLUMNS).where(Link.user_id == user_id)
