"""The bookmark file that all browsers write, read as it comes in pieces.

There is no standard, but for what the first browser did and the others took over:
https://learn.microsoft.com/en-us/previous-versions/windows/internet-explorer/ie-developer/platform-apis/aa753582(v=vs.85)

The parser is lxml's, whose tokenizer follows HTML5 and gets back in step after broken markup. It
reports elements as they come and builds no tree: 50,000 links (36 MB) take 0.2 s and 30 MB.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any, NamedTuple, cast

from lxml import etree

from app.links import addresses, charsets
from app.links.models import DESCRIPTION_LENGTH, TAG_LENGTH, TAGS, TITLE_LENGTH
from app.text import clean, clean_lines

LONGEST_TAG = 1024 * 1024  # bytes: browsers put a site's icon, and scripts, into one
LONGEST_TEXT = 4096  # characters of a title, a note or a heading that are looked at

ENDLESS = "The file is broken: it contains a tag or a comment without an end."
LINK = re.compile(r"<a\s", re.IGNORECASE)
ENDS_LINK = frozenset({"dt", "dl", "hr", "li", "ul", "ol"})
# What tells a bookmark from a link in a note, where a file leaves the <DT> out.
BOOKMARK_ATTRIBUTES = frozenset(
    {"add_date", "last_visit", "last_modified", "tags", "icon", "icon_uri", "private", "time_added"}
)

# Folders that say where a browser shows them, and nothing about what is in them. In other languages
# they are known by their attributes, where they have any.
PLACES = {
    *("bookmarks", "bookmarks bar", "bookmarks menu", "bookmarks toolbar", "other bookmarks"),
    *("mobile bookmarks", "favorites", "favorites bar", "reading list", "imported"),
}
PLACE_ATTRIBUTES = {"personal_toolbar_folder", "unfiled_bookmarks_folder"}

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)  # there was no web before


class Malformed(ValueError):
    """The file cannot be read any further; the words are for who has sent it."""


class Bookmark(NamedTuple):
    """A link of the file, in the forms that are kept."""

    url: str | None
    """None if it cannot be kept: a script, a file, a search, or broken markup."""
    title: str
    description: str
    tags: list[str]
    archived: bool
    created_at: datetime | None
    """None if the file does not tell, or not the truth."""


UNREADABLE = Bookmark(None, "", "", [], False, None)


class Reader:
    """Takes the file in pieces, and gives the links that have ended. For a thread: each takes time.

    Args:
        skip: links that are only counted.
        most: after so many nothing is read any more.

    Attributes:
        count: how many links there were so far.
        is_full: whether there are more than `most`.
        is_cut_off: once closed, whether the file ends within a tag or a comment.
        shortened: links with a title, a note or a tag that is too long, or with too many tags.
    """

    def __init__(self, *, skip: int = 0, most: int) -> None:
        self.count = self.shortened = 0
        self.is_full = self.is_cut_off = False
        self._skip, self._most = skip, most
        self._decoder = charsets.Decoder()
        self._parser = etree.HTMLParser(target=cast(Any, self))
        self._events = self._quiet = 0
        self._text: list[str] | None = None  # of the link, the note or the heading that this is in
        self._length = 0
        self._link: Mapping[str, str] | None = None  # attributes
        self._title = ""
        self._is_note = False
        self._note_links: list[str] = []
        self._heading: Mapping[str, str] | None = None
        self._folder: str | None = None  # what is in the next list becomes a tag
        self._folders: list[str | None] = []
        self._found: list[Bookmark] = []
        # No file holds it: where the parser does not see it at the end, it was in a tag.
        self._last_tag = f"x-{secrets.token_hex(8)}"

    def feed(self, content: bytes) -> list[Bookmark]:
        """Read a piece; the first must hold what says the character set, if anything does.

        Raises:
            Malformed: with a sentence.
        """
        if self.is_full:
            return []
        events = self._events
        self._parser.feed(self._decoder.decode(content))
        self._quiet = 0 if self._events > events else self._quiet + len(content)
        if self._quiet > LONGEST_TAG:  # the parser keeps it in memory
            if self._link is None:
                raise Malformed(ENDLESS)
            self._end_link()  # first what comes before it
        found, self._found = self._found, []
        return found

    def finish(self) -> list[Bookmark]:
        """Return the link that only the end of the file has ended, if there is one."""
        if not self.is_full:
            self.is_cut_off = True
            self._parser.feed(f"{self._decoder.end()}<{self._last_tag}>")
            with suppress(etree.LxmlError):  # of an empty file
                self._parser.close()
            self._end_link()
        found, self._found = self._found, []
        return found

    # What the parser calls, of the elements in the order of the file:

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._events += 1
        for _ in range(sum(len(LINK.findall(value)) for value in attributes.values())):
            self._add(UNREADABLE)  # a quote that never ends has swallowed it
        if tag == self._last_tag:
            self.is_cut_off = False
        elif tag == "a":
            self._start_link(attributes)
        elif tag == "h3":
            self._end_link()
            self._heading = attributes
            self._collect()
        elif tag == "dd" and self._link is not None:
            self._end_title()
            self._is_note = True
            self._collect()
        elif tag == "br":
            self.data("\n")
        elif tag in ENDS_LINK:
            self._end_link()
            if tag == "dl":
                self._folders.append(self._folder)
                self._folder = None

    def end(self, tag: str) -> None:
        self._events += 1
        if tag == "a":
            if self._note_links:
                self._end_note_link()
            else:
                self._end_title()
        elif tag == "h3":
            self._end_heading()
        elif tag in {"dd", "dl"}:
            self._end_link()
            if tag == "dl":
                self._folder = None
                if self._folders:
                    self._folders.pop()

    def data(self, text: str) -> None:
        self._events += 1
        if self._text is not None and self._length < LONGEST_TEXT:
            self._text.append(text[: LONGEST_TEXT - self._length])
            self._length += len(text)

    def comment(self, text: str) -> None:
        self._events += 1

    def close(self) -> None:
        """Nothing: the end of the file says nothing by itself."""

    def _start_link(self, attributes: Mapping[str, str]) -> None:
        if self._is_note and not attributes.keys() & BOOKMARK_ATTRIBUTES:
            self._note_links.append(attributes.get("href", ""))  # a link in a note is part of it
            return
        self._end_link()
        if "href" in attributes:
            self._link = attributes
            self._collect()

    def _collect(self) -> None:
        self._text, self._length = [], 0

    def _collected(self) -> str:
        text, self._text = "".join(self._text or []), None
        return text

    def _end_note_link(self) -> None:
        href = self._note_links.pop()
        if self._text is not None and href and href not in "".join(self._text):
            self.data(f" ({href})")

    def _end_title(self) -> None:
        if self._link is not None and not self._is_note and self._text is not None:
            self._title = self._collected()

    def _end_heading(self) -> None:
        if self._heading is None:
            return
        text = clean(self._collected(), TITLE_LENGTH)
        is_place = text.lower() in PLACES or bool(self._heading.keys() & PLACE_ATTRIBUTES)
        self._folder = None if is_place else text
        self._heading = None

    def _end_link(self) -> None:
        self._end_heading()
        self._end_title()
        attributes, title, note = self._link, self._title, ""
        if self._is_note:
            note = self._collected()
        self._link, self._title, self._is_note = None, "", False
        self._note_links.clear()
        self._text = None
        if attributes is not None:
            self._add(self._bookmark(attributes, title, note))

    def _add(self, bookmark: Bookmark) -> None:
        if self.count >= self._most:
            self.is_full = True
            return
        self.count += 1
        if self.count > self._skip:
            self._found.append(bookmark)

    def _bookmark(self, attributes: Mapping[str, str], title: str, note: str) -> Bookmark:
        href = attributes["href"].strip()
        words = [
            *attributes.get("tags", "").split(","),
            *(folder for folder in reversed(self._folders) if folder),
        ]
        tags = list(dict.fromkeys(tag for word in words if (tag := addresses.as_tag(word))))
        whole, note = clean(title), clean_lines(note)
        title, description = whole[:TITLE_LENGTH].rstrip(), note[:DESCRIPTION_LENGTH].rstrip()
        is_short = len(title) < len(whole) or len(description) < len(note) or len(tags) > TAGS
        self.shortened += is_short or any(len(word.strip()) > TAG_LENGTH for word in words)
        added = attributes.get("add_date", attributes.get("time_added", ""))
        return Bookmark(
            _address(href),
            # A link without a title is shown, and exported, under its address.
            "" if whole == clean(href) else title,
            description,
            sorted(tags[:TAGS]),
            attributes.get("archived") == "1",
            _time(added),
        )


def entry(
    url: str,
    title: str,
    *,
    description: str = "",
    tags: Sequence[str] = (),
    archived: bool = False,
    created_at: datetime,
) -> str:
    """Return the lines of one link, between `HEAD` and `FOOT`. A `Reader` gives the same again.

    But for what is finer than a second.
    """
    href = _escaped(url)
    added = int(created_at.timestamp())
    words = f' TAGS="{_escaped(",".join(tags))}"' if tags else ""
    mark = ' ARCHIVED="1"' if archived else ""
    line = (
        f'    <DT><A HREF="{href}" ADD_DATE="{added}"{words}{mark}>{_escaped(title) or href}</A>\n'
    )
    return f"{line}    <DD>{escape(description)}\n" if description else line


HEAD = """<!DOCTYPE NETSCAPE-Bookmark-file-1>
<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">
<TITLE>Bookmarks</TITLE>
<H1>Bookmarks</H1>
<DL><p>
"""
FOOT = "</DL><p>\n"


def _escaped(text: str) -> str:
    return " ".join(escape(text).split())  # on one line


def _address(href: str) -> str | None:
    # What has no scheme is a page beside the file, and what could not be decoded leads elsewhere.
    if "\ufffd" in href or not href.lower().startswith(("https://", "http://")):
        return None
    try:
        return addresses.normalize(href)
    except ValueError:
        return None


def _time(text: str) -> datetime | None:
    """Return the time that a file means: in seconds, and in some files in smaller units."""
    if not (text.isascii() and text.isdecimal() and len(text) < 18):
        return None
    seconds = int(text)
    for unit in (10**6, 10**3):
        if seconds >= 10**8 * unit:
            seconds //= unit
    try:
        time = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return time if EARLIEST <= time <= datetime.now(UTC) + timedelta(days=1) else None
