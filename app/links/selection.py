"""Which of a user's links a page shows: read from its address, and written into the next ones."""

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

# Of the pages and the API together: a search ranks up to a thousand links, and marks what it shows.
SEARCH_LIMIT = Limit("links-search", 60, 60)

STATES = {"unread": False, "archived": True, "all": None}
MAX_SEARCH_LENGTH = 200  # characters of a search


@dataclass(frozen=True)
class Selection:
    """Links in a state, of a tag; or those that a search finds, among all."""

    state: str = "unread"
    tag: str | None = None
    search_text: str = ""
    before: int | None = None
    """The id of the last link on the page before."""
    after: str | None = None
    """The same for a search: the cursor."""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "Selection":
        """Read the parameters of an address.

        Raises:
            ValueError: there is nothing that these could mean.
        """
        words = query.get("q", "").replace("\x00", "").strip()[:MAX_SEARCH_LENGTH]
        if words:
            return cls("all", search_text=words, after=query.get("after"))
        state = query.get("state", "unread")
        if state not in STATES:
            raise ValueError("there is no such state")
        tag, before = query.get("tag"), query.get("before")
        return cls(
            state,
            tags.parse_tag(tag) if tag else None,
            before=parse_id(before) if before else None,
        )

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the first of its pages."""
        if self.search_text:
            return {"q": self.search_text}
        parameters = {"state": self.state} if self.state != "unread" else {}
        return parameters | ({"tag": self.tag} if self.tag else {})

    @property
    def should_prepend_new(self) -> bool:
        """Whether what is saved next belongs on top of the page."""
        return not self.search_text and self.before is None

    @property
    def tag_query(self) -> str:
        """The query string for those of a tag, in the same state, up to the tag itself."""
        return urlencode({**Selection(self.state).parameters, "tag": ""})

    def with_tag(self, tag: str) -> dict[str, str]:
        """Return the parameters for those of a tag, in the same state."""
        return Selection(self.state, tag).parameters

    def with_state(self, state: str) -> dict[str, str]:
        """Return the parameters for those in a state, of the same tag."""
        return Selection(state, self.tag).parameters

    def next_page(self, last: SearchResult) -> dict[str, str]:
        """Return the parameters of the page that begins after `last`."""
        return self.parameters | {"after" if self.search_text else "before": last.cursor}

    def includes(self, item: LinkItem) -> bool:
        """Tell whether a link belongs to it; of a search, whether it may."""
        archived = STATES[self.state]
        return archived in {None, item.archived} and (self.tag is None or self.tag in item.tags)

    async def load(
        self, source: Source, user_id: int, *, limit: int
    ) -> tuple[list[SearchResult], bool]:
        """Return the links of the page, and whether there are more.

        Args:
            source: for the query; a session for a search.
            user_id: whose.
            limit: how many at most.

        Raises:
            ValueError: the cursor is none.
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
    """Return the id that a parameter names.

    Raises:
        ValueError: it names none that the database could have.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MAX_ID):
        raise ValueError("this is no number of a link")
    return int(text)
