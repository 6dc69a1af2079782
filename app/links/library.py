"""A user's links: every function takes a session and plain values, and the owner is in every WHERE.

What changes a link also asks for its job and tells the owner's open pages, in the same transaction.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, case, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import addresses, index, jobs, words
from app.links.models import Icon, Link, LinkTag
from quart_upsun.database import Base
from quart_upsun.database.statements import Source, Statement
from quart_upsun.live.events import publish
from quart_upsun.live.models import LiveEvent
from quart_upsun.text import clean

MOST_LINKS = 100_000  # of one user; an index of them is read when one is saved
TAGS_SHOWN = 200
# Links that are ranked: the newest that match. The best of a million are not found in a moment.
RANKED = 1000
NEAR = 20_000  # of the newest, in which words are looked for one link after the other
WORDS = 8  # of a query that are looked for
# Around the words that were looked for; of Unicode's private use area, so in nobody's text.
MARK, UNMARK = "\ue000", "\ue001"


class Item(NamedTuple):
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


# Of the table, because entities cost more than all the rest where only columns are wanted.
LINKS, LINK_TAGS = (Base.metadata.tables[each.__tablename__] for each in (Link, LinkTag))
COLUMNS = [LINKS.c[name] for name in Item._fields]


class Found(NamedTuple):
    """A link that a search has found: with marks in title and description, and where it stands."""

    item: Item
    title: str
    description: str
    cursor: str


def segments(marked: str) -> list[tuple[str, bool]]:
    """Split a text of `Found`: each part, and whether it is one of the words looked for."""
    parts = re.split(f"[{MARK}{UNMARK}]", marked)
    return [(part, number % 2 == 1) for number, part in enumerate(parts) if part]


TOO_MANY = (
    f"You have {MOST_LINKS:,} links, which is the most that an account can have. Delete some first."
)


def unmarked(item: Item) -> Found:
    """Return a link that was not searched for as one that was found."""
    return Found(item, item.title, item.description, str(item.id))


class TooManyLinksError(Exception):
    """The user has as many links as an account may have."""


class Changed(Exception):
    """The link is not at the version any more that the change was meant for."""


async def save(
    session: AsyncSession, user_id: int, url: str, *, title: str = "", tags: Sequence[str] = ()
) -> tuple[Item, bool]:
    """Save a link; return it, and whether it is new. One that is there already stays as it is.

    Args:
        session: of `write()`.
        user_id: whose.
        url: normalised.
        title: empty to take the page's.
        tags: as `addresses.tags` returns them.

    Raises:
        TooManyLinksError: the user has `MOST_LINKS` already.
    """
    values = {
        "user_id": user_id,
        "url": url,
        "title": title,
        "title_given": bool(title),
        "tags": list(tags),
        "attempted_at": func.now(),
        "search": index.whole(user_id, url=url, title=title, tags=tags),
    }
    new = insert(Link).values(values).on_conflict_do_nothing().returning(*COLUMNS)
    old = _of(user_id).where(Link.url == url)
    while (row := (await session.execute(new)).one_or_none()) is None:
        if (row := (await session.execute(old)).one_or_none()) is not None:
            return Item(*row), False
        # Deleted between the two statements: now there is room for it.
    if await room(session, user_id) < 0:
        raise TooManyLinksError
    item = Item(*row)
    await jobs.ask(session, [item.id])
    await publish(session, user_id, "link", id=item.id)
    return item, True


async def room(session: AsyncSession, user_id: int) -> int:
    """Return how many links a user may add; negative if there are too many.

    Of two transactions that add at once neither sees the other's: together they may add a few more.
    """
    few = select(Link.id).where(Link.user_id == user_id).limit(MOST_LINKS + 1).subquery()
    return MOST_LINKS - (await session.scalar(select(func.count()).select_from(few)) or 0)


async def get(
    session: AsyncSession, user_id: int, link_id: int, *, lock: bool = False
) -> Item | None:
    """Return a link, or None if the user has none of this number.

    With `lock`, nobody else changes it until the transaction ends.
    """
    query = _of(user_id).where(Link.id == link_id)
    row = (await session.execute(query.with_for_update() if lock else query)).one_or_none()
    return Item(*row) if row is not None else None


async def change(
    session: AsyncSession, user_id: int, link_id: int, *, version: int | None = None, **values: Any
) -> Item | None:
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
        Changed: it is at another version.
    """
    for name in {"title", "description"} & values.keys():
        # A form that sends the page's own text back has given none.
        is_same, was_given = (getattr(Link, name) == values[name], getattr(Link, f"{name}_given"))
        values[f"{name}_given"] = case((is_same, was_given), else_=bool(values[name]))
    if changed_texts := values.keys() & index.WEIGHTS.keys():
        values["search"] = index.changed(
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
            raise Changed
        return None
    item = Item(*row)
    if "" in (values.get("title"), values.get("description")):
        await jobs.ask(session, [item.id])
    await publish(session, user_id, "link", id=item.id)
    return item


async def refetch(session: AsyncSession, user_id: int, link_id: int) -> bool:
    """Ask for a link's page to be fetched again; return False if the user has no such link."""
    if await get(session, user_id, link_id) is None:
        return False
    await jobs.ask(session, [link_id])
    return True


async def remove(session: AsyncSession, user_id: int, link_id: int) -> bool:
    """Delete a link; return False if the user has none of this number."""
    gone = delete(Link).where(Link.id == link_id, Link.user_id == user_id).returning(Link.id)
    if await session.scalar(gone) is None:
        return False
    await publish(session, user_id, "link", id=link_id)
    return True


async def page(
    source: Source,
    user_id: int,
    *,
    archived: bool | None = None,
    tag: str | None = None,
    before: int | None = None,
    limit: int,
) -> list[Item]:
    """Return links, the newest first, in one query by an index: no page costs more than the first.

    Args:
        source: for the query.
        user_id: whose.
        archived: only those in this state; None for all.
        tag: only those with this tag.
        before: the id of the last one on the page before.
        limit: how many at most.
    """
    statement = _page(tag is not None, archived is not None, before is not None)
    return await statement.rows(
        source, user_id=user_id, archived=archived, tag=tag, before=before, count=limit
    )


@cache
def _page(by_tag: bool, by_state: bool, further: bool) -> Statement[Item]:
    """Return the statement of `page`, which is asked so often that each form is built once."""
    query = select(*COLUMNS).where(LINKS.c.user_id == bindparam("user_id"))
    query = query.order_by(LINKS.c.id.desc())
    # What decides which rows are on the page, and its columns that are called the same.
    by, number = (LINK_TAGS, LINK_TAGS.c.link_id) if by_tag else (LINKS, LINKS.c.id)
    chosen = [by.c.user_id == bindparam("user_id")]
    if by_tag:
        chosen.append(LINK_TAGS.c.tag == bindparam("tag"))
    if by_state:
        chosen.append(by.c.archived == bindparam("archived"))
    if further:
        chosen.append(number < bindparam("before"))
    if not by_tag:
        return Statement(query.where(*chosen[1:]).limit(bindparam("count")), Item._make)
    ids = select(number).where(*chosen).order_by(number.desc()).limit(bindparam("count"))
    found = ids.subquery()
    return Statement(query.join(found, found.c.link_id == LINKS.c.id), Item._make)


async def tags(
    session: AsyncSession, user_id: int, *, after: str = "", limit: int = TAGS_SHOWN
) -> list[str]:
    """Return the tags a user has, in alphabetical order.

    The index is read at one place for each tag, not for each link.

    Args:
        session: for the query.
        user_id: whose.
        after: the last tag on the previous page; empty for the first page.
        limit: how many at most.
    """
    rows = await session.scalars(TAGS_OF, {"user_id": user_id, "after": after, "limit": limit})
    return list(rows)


TAGS_OF = text(
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
)


async def search(
    session: AsyncSession, user_id: int, text: str, *, after: str | None = None, limit: int
) -> list[Found]:
    """Return the links that have all words, or begin with them, the best first.

    Ranked are the newest `RANKED` of those that match, so that a word of everywhere costs no more
    than another; who looks for one of the others, adds a word.

    Args:
        session: for the query.
        user_id: whose.
        text: as typed; its first `WORDS` words are looked for.
        after: the cursor of the last one on the page before.
        limit: how many at most.

    Raises:
        ValueError: `after` is no cursor.
    """
    newest, rank, last = _cursor(after)
    # Cleaned as titles are, and without what is not stored of an address.
    wanted = words.query(addresses.untracked(clean(text)), WORDS)
    if not wanted:
        return []
    lexemes = " & ".join(f"'{word}':*" for word in wanted)
    rows = await session.execute(
        SEARCH,
        {
            "user_id": user_id,
            # The owner is a lexeme, too: one index finds the words of one user.
            "owned": f"'{index.owner(user_id)}' & {lexemes}",
            "words": lexemes,
            "newest": newest,
            "rank": rank,
            "last": last,
            "ranked": RANKED,
            "near": NEAR,
            "limit": limit,
        },
    )
    found = []
    for row in rows:
        item = Item(*row[: len(Item._fields)])
        rank, newest = row[len(Item._fields) :]
        title, description = (
            words.marked(each, wanted, MARK, UNMARK) for each in (item.title, item.description)
        )
        found.append(Found(item, title, description, f"{newest}.{rank!r}.{item.id}"))
    return found


def _cursor(after: str | None) -> tuple[int, float, int]:
    """Return where to go on: the newest link when the search began, rank and id of the last one."""
    if after is None:
        return 2**63 - 1, float("inf"), 2**63 - 1
    newest, _, rest = after.partition(".")
    rank, _, last = rest.rpartition(".")
    numbers = int(newest), float(rank), int(last)
    if not (0 < numbers[0] < 2**63 and 0 <= numbers[1] < 1e6 and 0 < numbers[2] < 2**63):
        raise ValueError("the cursor is out of range")
    return numbers


# PostgreSQL cannot tell how often words occur that begin like this, and for a wrong guess takes a
# thousand times as long. So it is told: common words are found by walking through the newest links;
# what is rare among these, or older, by the index of words. That one is not even looked at when the
# walk has found enough, or all links of the user were seen.
SEARCH = text(
    f"""
    WITH near AS MATERIALIZED (
        SELECT id, search FROM (
            SELECT id, search FROM links WHERE user_id = :user_id AND id <= :newest
            ORDER BY id DESC LIMIT :near
        ) AS walked
        WHERE search @@ CAST(:owned AS tsquery)
        LIMIT :ranked
    ), border AS (
        SELECT id FROM links WHERE user_id = :user_id AND id <= :newest
        ORDER BY id DESC LIMIT 1 OFFSET :near
    ), far AS MATERIALIZED (
        SELECT id, search FROM links
        -- The zeros keep the other indexes out of it.
        WHERE search @@ CAST(:owned AS tsquery) AND user_id + 0 = :user_id
        AND (SELECT count(*) FROM near) < :ranked
        AND (SELECT id FROM border) IS NOT NULL
        AND id + 0 <= (SELECT id FROM border)
    ), matching AS MATERIALIZED (
        SELECT id, ts_rank(search, CAST(:words AS tsquery))::float8 AS rank
        FROM (SELECT * FROM near UNION ALL SELECT * FROM far) AS either
        ORDER BY id DESC LIMIT :ranked
    ), best AS (
        SELECT id, rank, (SELECT max(id) FROM matching) AS newest FROM matching
        WHERE (rank, id) < (:rank, :last)
        ORDER BY rank DESC, id DESC LIMIT :limit
    )
    SELECT {", ".join(map(str, COLUMNS))}, best.rank, best.newest
    FROM best JOIN links USING (id)
    ORDER BY best.rank DESC, best.id DESC
    """  # noqa: S608 only names of columns
)


async def icon(session: AsyncSession, digest: bytes) -> tuple[bytes, str] | None:
    """Return the content of an icon and its media type; it is nobody's in particular."""
    found = select(Icon.content, Icon.content_type).where(Icon.digest == digest)
    row = (await session.execute(found)).one_or_none()
    return (row.content, row.content_type) if row is not None else None


async def newest_event(session: AsyncSession, user_id: int) -> int:
    """Return where a page begins to listen for what happens after it was read; 0 for the start."""
    newest = select(func.max(LiveEvent.id)).where(LiveEvent.user_id == user_id)
    return await session.scalar(newest) or 0


def _of(user_id: int) -> Select[Any]:
    return select(*COLUMNS).where(Link.user_id == user_id)
