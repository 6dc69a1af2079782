"""Filters, search and cursor of a list of links, parsed from and written to the query string."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from sqlalchemy.ext.asyncio import AsyncSession

from app.links import queries, search, tags
from app.links.queries import LinkItem
from app.links.search import SearchResult
from quart_upsun.database import MAX_ID
from quart_upsun.database.statements import Source
from quart_upsun.security.limits import Limit

# Shared by pages and API, because a search is expensive: it ranks up to a thousand links.
SEARCH_LIMIT = Limit("links-search", 60, 60)

STATES = {"unread": False, "archived": True, "all": None}
MAX_SEARCH_LENGTH = 200  # characters


@dataclass(frozen=True)
class Selection:
    """Links filtered by state and tag, or the results of a search in all links."""

    state: str = "unread"
    tag: str | None = None
    search_text: str = ""
    before: int | None = None
    """Cursor: the id of the last link on the previous page."""
    after: str | None = None
    """Cursor of a search."""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "Selection":
        """Parse the query parameters.

        Raises:
            ValueError: a parameter is invalid.
        """
        words = query.get("q", "").replace("\x00", "").strip()[:MAX_SEARCH_LENGTH]
        if words:
            return cls("all", search_text=words, after=query.get("after"))
        state = query.get("state", "unread")
        if state not in STATES:
            raise ValueError("unknown state")
        tag, before = query.get("tag"), query.get("before")
        return cls(
            state,
            tags.parse_tag(tag) if tag else None,
            before=parse_id(before) if before else None,
        )

    @property
    def parameters(self) -> dict[str, str]:
        """The query parameters of the first page."""
        if self.search_text:
            return {"q": self.search_text}
        parameters = {"state": self.state} if self.state != "unread" else {}
        return parameters | ({"tag": self.tag} if self.tag else {})

    @property
    def should_prepend_new(self) -> bool:
        """Whether new links go on top of the page."""
        return not self.search_text and self.before is None

    @property
    def tag_query(self) -> str:
        """The query string for those of a tag, in the same state, up to the tag itself."""
        return urlencode({**Selection(self.state).parameters, "tag": ""})

    def with_state(self, state: str) -> dict[str, str]:
        """Return the query parameters for another state with the same tag."""
        return Selection(state, self.tag).parameters

    def next_page(self, last: SearchResult) -> dict[str, str]:
        """Return the query parameters of the page after `last`."""
        return self.parameters | {"after" if self.search_text else "before": last.cursor}

    def includes(self, item: LinkItem) -> bool:
        """Return whether a link matches the filters. Search terms are not checked."""
        archived = STATES[self.state]
        return archived in {None, item.archived} and (self.tag is None or self.tag in item.tags)

    async def load(
        self, source: Source, user_id: int, *, limit: int
    ) -> tuple[list[SearchResult], bool]:
        """Return the links of the page, and whether there is a next page.

        Args:
            source: for the query; a session for a search.
            user_id: whose.
            limit: how many at most.

        Raises:
            ValueError: the cursor is invalid.
        """
        if self.search_text:
            if not isinstance(source, AsyncSession):
                raise TypeError("a search needs a session")
            found = await search.search(
                source, user_id, self.search_text, after=self.after, limit=limit + 1
            )
        else:
            items = await queries.list_links(
                source,
                user_id,
                archived=STATES[self.state],
                tag=self.tag,
                before=self.before,
                limit=limit + 1,
            )
            found = [search.as_search_result(item) for item in items]
        return found[:limit], len(found) > limit


def parse_id(text: str) -> int:
    """Parse an id from a query parameter.

    Raises:
        ValueError: it is not a number, or too large for the column.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MAX_ID):
        raise ValueError("not a link id")
    return int(text)
