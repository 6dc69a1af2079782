"""Search a user's links, the best first."""

import re
from typing import NamedTuple

from markupsafe import Markup, escape
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import search_index
from app.links.queries import LinkItem
from quart_upsun import search_words, urls
from quart_upsun.text import clean

# Links that are ranked: the newest that match. The best of a million are not found in a moment.
MAX_RANKED = 1000
RECENT_LINKS = 20_000  # of the newest, in which words are looked for one link after the other
MAX_WORDS = 8  # of a query that are looked for
# Around the words that were looked for; of Unicode's private use area, so in nobody's text.
MARK_START, MARK_END = "\ue000", "\ue001"
MARKED = re.compile(f"{MARK_START}([^{MARK_START}{MARK_END}]*){MARK_END}")


class SearchResult(NamedTuple):
    """A link that a search has found: with marks in title and description, and where it stands."""

    item: LinkItem
    title: str
    description: str
    cursor: str


def highlight(marked: str) -> Markup:
    """Return a text of `SearchResult` as HTML, with the words that were looked for in `<mark>`."""
    if MARK_START not in marked and MARK_END not in marked:
        return escape(marked)
    found = MARKED.sub(r"<mark>\1</mark>", str(escape(marked)))
    # What is left is no pair: somebody's own text has such characters.
    return Markup(found.replace(MARK_START, "").replace(MARK_END, ""))  # noqa: S704 it is escaped


def as_search_result(item: LinkItem) -> SearchResult:
    """Return a link that was not searched for as one that was found."""
    return SearchResult(item, item.title, item.description, str(item.id))


async def search(
    session: AsyncSession, user_id: int, text: str, *, after: str | None = None, limit: int
) -> list[SearchResult]:
    """Return the links that have all words, or begin with them, the best first.

    The newest `MAX_RANKED` matches are ranked, so that a word of everywhere costs no more
    than another; who looks for one of the others, adds a word.

    Args:
        session: for the query.
        user_id: whose.
        text: as typed; its first `MAX_WORDS` words are looked for.
        after: the cursor of the last one on the page before.
        limit: how many at most.

    Raises:
        ValueError: `after` is no cursor.
    """
    newest, rank, last = _parse_cursor(after)
    # Cleaned as titles are, and without what is not stored of an address.
    wanted = search_words.query_words(urls.remove_tracking_parameters(clean(text)), MAX_WORDS)
    if not wanted:
        return []
    lexemes = " & ".join(f"'{word}':*" for word in wanted)
    rows = await session.execute(
        SEARCH_STATEMENT,
        {
            "user_id": user_id,
            # The owner is a lexeme, too: one index finds the words of one user.
            "owned": f"'{search_index.owner_lexeme(user_id)}' & {lexemes}",
            "words": lexemes,
            "newest": newest,
            "rank": rank,
            "last": last,
            "ranked": MAX_RANKED,
            "near": RECENT_LINKS,
            "limit": limit,
        },
    )
    found = []
    for row in rows:
        item = LinkItem(*row[: len(LinkItem._fields)])
        rank, newest = row[len(LinkItem._fields) :]
        title, description = (
            search_words.highlight(each, wanted, MARK_START, MARK_END)
            for each in (item.title, item.description)
        )
        found.append(SearchResult(item, title, description, f"{newest}.{rank!r}.{item.id}"))
    return found


def _parse_cursor(after: str | None) -> tuple[int, float, int]:
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
SEARCH_STATEMENT = text(
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
    SELECT {", ".join(f"links.{name}" for name in LinkItem._fields)},
        best.rank, best.newest
    FROM best JOIN links USING (id)
    ORDER BY best.rank DESC, best.id DESC
    """  # noqa: S608 only names of columns
)
