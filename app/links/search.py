"""Full-text search in a user's links, ranked by relevance."""

import re
from typing import NamedTuple

from markupsafe import Markup, escape
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import search_index
from app.links.queries import MAX_ID, LinkItem
from quart_upsun import search_words, urls
from quart_upsun.text import clean

# Only the newest matches are ranked: ranking a million links would take too long.
MAX_RANKED = 1000
RECENT_LINKS = 20_000  # newest links that are scanned without the full-text index
MAX_WORDS = 8  # of a query; further words are ignored
# Markers around search terms, from the private use area of Unicode, so they occur in no text.
MARK_START, MARK_END = "\ue000", "\ue001"
MARKED = re.compile(f"{MARK_START}([^{MARK_START}{MARK_END}]*){MARK_END}")


class SearchResult(NamedTuple):
    """A link with marked search terms in title and description, and the cursor behind it."""

    item: LinkItem
    title: str
    description: str
    cursor: str


def highlight(marked: str) -> Markup:
    """Return a text of `SearchResult` as HTML, with the search terms in `<mark>`."""
    if MARK_START not in marked and MARK_END not in marked:
        return escape(marked)
    found = MARKED.sub(r"<mark>\1</mark>", str(escape(marked)))
    # Unpaired markers come from the text itself.
    return Markup(found.replace(MARK_START, "").replace(MARK_END, ""))  # noqa: S704 escaped


def as_search_result(item: LinkItem) -> SearchResult:
    """Return a link of a list as a search result without marks."""
    return SearchResult(item, item.title, item.description, str(item.id))


async def search(
    session: AsyncSession, user_id: int, text: str, *, after: str | None = None, limit: int
) -> list[SearchResult]:
    """Return the links that match all words (by prefix), most relevant first.

    Only the newest `MAX_RANKED` matches are ranked, so that common words cost no more than rare
    ones. To find older matches, users add a word.

    Args:
        session: for the query.
        user_id: the owner.
        text: as typed; only the first `MAX_WORDS` words count.
        after: the cursor of the last result on the previous page.
        limit: maximum number of results.

    Raises:
        ValueError: `after` is not a valid cursor.
    """
    newest, rank, last = _parse_cursor(after)
    # Cleaned like titles, and without tracking parameters, which are not stored either.
    wanted = search_words.query_words(urls.remove_tracking_parameters(clean(text)), MAX_WORDS)
    if not wanted:
        return []
    lexemes = " & ".join(f"'{word}':*" for word in wanted)
    rows = await session.execute(
        SEARCH_STATEMENT,
        {
            "user_id": user_id,
            # The owner is a lexeme, so one index finds the words of one user.
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
    """Parse a cursor: newest id when the search began, then rank and id of the last result."""
    if after is None:
        return MAX_ID, float("inf"), MAX_ID
    newest, _, rest = after.partition(".")
    rank, _, last = rest.rpartition(".")
    numbers = int(newest), float(rank), int(last)
    if not (0 < numbers[0] <= MAX_ID and 0 <= numbers[1] < 1e6 and 0 < numbers[2] <= MAX_ID):
        raise ValueError("the cursor is out of range")
    return numbers


# PostgreSQL cannot estimate how many words have a prefix, and a wrong plan takes a thousand times
# as long. So this query fixes the plan: it scans the newest links, which finds common words
# quickly, and uses the full-text index for older links. The index is skipped when the scan has
# found enough matches or has covered all links of the user. The rows keep PostgreSQL from walking
# the links of all users.
SEARCH_STATEMENT = text(
    f"""
    WITH near AS MATERIALIZED (
        SELECT id, search FROM (
            SELECT id, search FROM links
            WHERE user_id >= :user_id AND (user_id, id) <= (:user_id, :newest)
            ORDER BY user_id DESC, id DESC LIMIT :near
        ) AS walked
        WHERE search @@ CAST(:owned AS tsquery)
        LIMIT :ranked
    ), border AS (
        SELECT id FROM links
        WHERE user_id >= :user_id AND (user_id, id) <= (:user_id, :newest)
        ORDER BY user_id DESC, id DESC LIMIT 1 OFFSET :near
    ), far AS MATERIALIZED (
        SELECT id, search FROM links
        -- `+ 0` prevents the use of other indexes.
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
    """  # noqa: S608 only column names
)
