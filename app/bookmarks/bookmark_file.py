"""Parse and write the Netscape bookmark file format, which all browsers export.

There is no standard, only Netscape's format, which other browsers adopted:
https://learn.microsoft.com/en-us/previous-versions/windows/internet-explorer/ie-developer/platform-apis/aa753582(v=vs.85)

lxml tokenizes the file incrementally by the rules of HTML5. `_resynchronize` limits the damage of
broken markup to one entry, and `Losses` counts what was lost.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any, NamedTuple

from lxml import etree

from app.links import tags
from app.links.models import DESCRIPTION_LENGTH, MAX_TAGS, TITLE_LENGTH
from quart_upsun import charsets, urls
from quart_upsun.text import clean, clean_lines

MAX_TAG_CHARACTERS = 1024 * 1024  # browsers embed icons and scripts in attributes
MAX_TEXT_CHARACTERS = 4096  # of a title, note or heading; the rest is ignored
# Start tags, end tags and comments, because the parser keeps open elements in memory. A link has
# about six, and its note may have a `<BR>` for each line.
MAX_MARKUP_TAGS, MAX_MARKUP_TAGS_PER_LINK = 1_000_000, 50
MAX_NAMES = 10_000  # distinct tag and attribute names, which lxml never frees
MAX_FOLDER_DEPTH = 50  # nested folders that become tags

# The start of each bookmark, folder and list.
ENTRY_START = re.compile(r"<(?=/?(?:dt|dd|dl|li)[\s>])", re.IGNORECASE)
# Raw text elements: everything up to their end tag is text, including links.
RAW_TEXT_START = re.compile(
    r"<(?=/?(?:title|textarea|style|script|xmp|iframe|noembed|noframes|plaintext)[\s/>])",
    re.IGNORECASE,
)
LINK_START = re.compile(r"<a\s[^<]{0,100}?href", re.IGNORECASE)
# Markers of `_resynchronize`: private use characters, which are removed from the input.
RESYNC_MARK, RAW_MARK = "\U0010fffd", "\U0010fffc"
RESYNC_TEXT = f"{RESYNC_MARK}'\"-->"
INVALID_NAME_CHARACTERS = {*"\"'<", RESYNC_MARK}
MAX_TAG_NAME_LENGTH = 12  # characters that ENTRY_START and RAW_TEXT_START need to match

ENTRY_ENDING_TAGS = {"dt", "dl", "hr", "li", "ul", "ol"}
# Formatting of a title or note, which is dropped. Any other tag may be text that was not escaped.
FORMATTING_TAGS = {
    *("b", "strong", "i", "em", "u", "s", "del", "ins", "mark", "small", "big", "sub", "sup"),
    *("code", "kbd", "samp", "tt", "pre", "q", "cite", "blockquote", "abbr", "wbr"),
    *("span", "font", "div", "img"),
}
# Only bookmarks have these attributes. A link in a note without any of them is part of the note.
BOOKMARK_ATTRIBUTES = {
    "add_date",
    "last_modified",
    "last_visit",
    "icon",
    "icon_uri",
    "tags",
    "time_added",
}

# Built-in folders of browsers, which do not become tags. In other languages they can be recognized
# only by their attributes, if they have any.
SPECIAL_FOLDERS = {
    *("bookmarks", "bookmarks bar", "bookmarks menu", "bookmarks toolbar", "other bookmarks"),
    *("mobile bookmarks", "favorites", "favorites bar", "reading list", "imported"),
}
SPECIAL_FOLDER_ATTRIBUTES = {"personal_toolbar_folder", "unfiled_bookmarks_folder"}

EARLIEST_TIME = datetime(1990, 1, 1, tzinfo=UTC)  # before the web; earlier dates are wrong


class Bookmark(NamedTuple):
    """A link of the file, normalized."""

    url: str | None
    """None if it is not a web address: a script, a file, a search."""
    title: str
    description: str
    """The note, with its line breaks."""
    tags: list[str]
    archived: bool
    created_at: datetime | None
    """None if the file has no valid date."""


@dataclass
class Losses:
    """Counts of what an import shortened, skipped or could not parse."""

    titles: int = 0
    """Links whose title was longer than 300 characters."""
    notes: int = 0
    """Links whose note was longer than 1,000 characters."""
    tags: int = 0
    """Links with more than 20 tags, or with tags that lost characters or were skipped."""
    damaged: int = 0
    """Links with broken markup, which may be incomplete."""
    hidden: int = 0
    """Links inside comments or inside attributes of broken tags."""
    folder_notes: int = 0
    """Notes of folders."""
    is_cut_off: bool = False
    """Whether the file ends inside a tag, title or comment, so that links may be missing."""

    def summary(self) -> str | None:
        """Return a message for the owner; None if nothing was lost."""
        parts = [
            (self.titles, "title{s} shortened to 300 characters"),
            (self.notes, "note{s} shortened to 1,000 characters"),
            (
                self.tags,
                "link{s} with changed or skipped tags (at most 20 of 40 letters, digits, - and _)",
            ),
            (self.damaged, "link{s} with broken markup (check title, tags and note)"),
            (self.hidden, "link{s} inside comments or broken tags skipped"),
            (self.folder_notes, "folder note{s} skipped"),
        ]
        found = [f"{count:,} {what.format(s='s'[: count != 1])}" for count, what in parts if count]
        sentences = [f"{'; '.join(found)}."] if found else []
        if self.is_cut_off:
            sentences.append(
                "The file ends inside a tag, title or comment, so links at its end may be missing."
            )
        return " ".join(sentences) or None


@dataclass
class _Entry:
    """A link with the raw values of the file."""

    attributes: dict[str, str]
    is_damaged: bool
    has_lost_text: bool = False
    """Whether a part of the title or note looked like markup."""
    title: str = ""
    note: str = ""

    @property
    def href(self) -> str:
        # Firefox's live bookmarks may have only the URL of their feed.
        return (self.attributes.get("href") or self.attributes.get("feedurl", "")).strip()


class _BookmarkTarget:
    """Build links from the parser events of lxml.

    Args:
        on_link: called with each complete link and its folders, innermost first.
        losses: updated with what is lost.

    Attributes:
        tags: number of start tags, end tags and comments so far.
        events: number of tags, comments and text pieces so far. Each entity is a piece, so a note
            may have hundreds.
        names: distinct tag and attribute names so far.
        has_ended: whether the comment that marks the end of the file was reached outside a title.
    """

    def __init__(self, on_link: Callable[[_Entry, Iterable[str]], None], losses: Losses) -> None:
        self.tags = self.events = 0
        self.names: set[str] = set()
        self.has_ended = False
        self._on_link, self._losses = on_link, losses
        self._text: list[str] | None = None  # of the current title, note or heading
        self._length = 0
        self._entry: _Entry | None = None
        self._heading: dict[str, str] | None = None
        self._in_note = False
        self._note_href = ""  # of a link in a note
        self._folder: str | None = None  # name of the folder whose list comes next
        self._folders: list[str | None] = []
        self._skipped_depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Handle a start tag."""
        self.tags += 1
        self.events += 1
        self.names.update((tag, *attributes))
        if tag == "a":
            self._start_link(dict(attributes))
        elif tag == "h3":
            self.end_entry()
            self._heading, self._text = dict(attributes), []
        elif tag == "dd":
            self._end_text()
            self._in_note, self._text = True, []
        elif tag in {"br", "p"}:
            self._add("\n")
        elif tag in ENTRY_ENDING_TAGS:
            self.end_entry()
            if tag == "dl":
                self._enter()
        elif tag not in FORMATTING_TAGS:
            self._lose_text()

    def end(self, tag: str) -> None:
        """Handle an end tag; the parser adds missing ones."""
        self.tags += 1
        self.events += 1
        if tag == "a" and self._in_note:
            if self._note_href and self._note_href not in "".join(self._text or []):
                self._add(f" ({self._note_href})")
            self._note_href = ""
        elif tag in {"a", "h3"}:
            self._end_text()
        elif tag == "dl":
            self.end_entry()
            self._leave()

    def data(self, data: str) -> None:
        """Handle text."""
        self.events += 1
        self._add(data)

    def comment(self, text: str) -> None:
        """Handle a comment or a declaration."""
        self.tags += 1
        self.events += 1
        if text == RESYNC_MARK:  # the end of the file
            is_in_title = self._entry is not None and self._text is not None and not self._in_note
            self.has_ended = not is_in_title
        elif not self._lose_text() and text.endswith(f"{RESYNC_MARK}'\""):
            # An unclosed comment that `_resynchronize` has closed: it contains part of a link.
            self._losses.damaged += 1
        self._losses.hidden += len(LINK_START.findall(text))

    def close(self) -> None:
        """Handle the end of the file."""

    def end_entry(self) -> None:
        """End the current link and its note."""
        self._end_text()
        if self._entry is not None:
            entry, self._entry = self._entry, None
            self._on_link(entry, (folder for folder in reversed(self._folders) if folder))

    def _start_link(self, attributes: dict[str, str]) -> None:
        attributes = {name: text.replace(RAW_MARK, "") for name, text in attributes.items()}
        if self._in_note and not attributes.keys() & BOOKMARK_ATTRIBUTES:
            self._note_href = attributes.get("href", "").partition(RESYNC_MARK)[0].strip()
            return
        self.end_entry()
        if "href" not in attributes and "feedurl" not in attributes:
            return
        is_damaged = any(set(name) & INVALID_NAME_CHARACTERS for name in attributes) or any(
            RESYNC_MARK in text for text in attributes.values()
        )
        attributes = {name: text.partition(RESYNC_MARK)[0] for name, text in attributes.items()}
        self._entry, self._text = _Entry(attributes, is_damaged), []

    def _lose_text(self) -> bool:
        """Note that the current title or note has lost a part; return whether there is one."""
        if self._entry is None or self._text is None:
            return False
        self._entry.has_lost_text = True
        return True

    def _add(self, text: str) -> None:
        if self._text is not None and self._length < MAX_TEXT_CHARACTERS:
            self._text.append(text[: MAX_TEXT_CHARACTERS - self._length])
            self._length += len(text)

    def _enter(self) -> None:
        if len(self._folders) < MAX_FOLDER_DEPTH:
            self._folders.append(self._folder)
        else:
            self._skipped_depth += 1
        self._folder = None

    def _leave(self) -> None:
        self._folder = None
        if self._skipped_depth:
            self._skipped_depth -= 1
        elif self._folders:
            self._folders.pop()

    def _end_text(self) -> None:
        """End the current title, note or heading."""
        if self._text is None:
            return
        text = "".join(self._text).replace(RESYNC_TEXT, "").replace(RAW_MARK, "")
        if self._heading is not None:
            text = clean(text, TITLE_LENGTH)
            is_special = text.lower() in SPECIAL_FOLDERS or bool(
                self._heading.keys() & SPECIAL_FOLDER_ATTRIBUTES
            )
            self._folder = None if is_special else text
        elif self._entry is None:
            self._losses.folder_notes += self._in_note and bool(text.strip())
        elif self._in_note:
            self._entry.note += f"\n{text}"
        else:
            self._entry.title = text
        self._heading = self._text = None
        self._in_note, self._note_href, self._length = False, "", 0


class BookmarkParser:
    """Parse a file incrementally.

    Call `feed` and `close` in one thread that ends with the file: they block, and lxml keeps every
    tag and attribute name for the lifetime of the thread.

    Args:
        skip: count this many links at the beginning without returning them.
        max_links: stop after this many links.

    Attributes:
        count: number of links so far.
        is_full: whether the file has more than `max_links` links.
        error: a message for the owner if the rest of the file cannot be parsed, else None.
        losses: counts of what was shortened, skipped or damaged so far.
    """

    def __init__(self, *, skip: int = 0, max_links: int) -> None:
        self.count = 0
        self.is_full = False
        self.error: str | None = None
        self.losses = Losses()
        self._skip, self._max_links = skip, max_links
        self._decoder: codecs.IncrementalDecoder | None = None
        self._target = _BookmarkTarget(self._keep, self.losses)
        self._parser: Any = None
        self._unparsed = ""  # an incomplete tag at the end of a chunk
        self._unreported = 0  # characters since the last parser event
        self._found: list[Bookmark] = []

    @property
    def is_finished(self) -> bool:
        """Whether the rest of the file is ignored."""
        return self.is_full or self.error is not None

    def feed(self, content: bytes) -> list[Bookmark]:
        """Parse a chunk and return its complete links. The first one must declare any charset."""
        if self._decoder is None:
            self._decoder = charsets.create_decoder(content, lenient=True)
        self._parse(self._decoder.decode(content))
        found, self._found = self._found, []
        return found

    def close(self) -> list[Bookmark]:
        """End the file, and return the last link."""
        if self._decoder is not None and not self.is_finished:
            self._parse(self._decoder.decode(b"", True), is_end=True)
            self._parser.close()
            self.losses.is_cut_off = not self._target.has_ended
        self._target.end_entry()
        found, self._found = self._found, []
        return found

    def _parse(self, text: str, *, is_end: bool = False) -> None:
        if self.is_finished:
            return
        if self._parser is None:  # in the thread that calls `feed`
            target: Any = self._target  # lxml's stubs require more methods than lxml does
            self._parser = etree.HTMLParser(target=target, encoding="utf-8", huge_tree=True)
        text = self._unparsed + re.sub(f"[\0{RESYNC_MARK}{RAW_MARK}]", "", text)
        cut = -1 if is_end else text.rfind("<", max(len(text) - MAX_TAG_NAME_LENGTH, 0))
        self._unparsed = text[cut:] if cut >= 0 else ""
        text = _resynchronize(text[:cut] if cut >= 0 else text)
        # An unclosed tag or comment would contain this comment, too.
        text += f"<!--{RESYNC_MARK}-->" if is_end else ""
        before = self._target.events
        self._parser.feed(text.encode("utf-8", "replace"))
        self._unreported = self._unreported + len(text) if self._target.events == before else 0
        if self._unreported > MAX_TAG_CHARACTERS:
            self.error = "The file is damaged: it contains an unclosed tag or comment."
        max_tags = MAX_MARKUP_TAGS + MAX_MARKUP_TAGS_PER_LINK * self.count
        if self._target.tags > max_tags or len(self._target.names) > MAX_NAMES:
            self.error = "The file is damaged: it contains too much markup."

    def _keep(self, entry: _Entry, folders: Iterable[str]) -> None:
        if self.count >= self._max_links:
            self.is_full = True
        if self.is_full:
            return
        self.count += 1
        attributes, href, title = entry.attributes, entry.href, entry.title
        if entry.is_damaged:
            # An unclosed quote may have moved the title into the attribute.
            title_in_href = href.partition(">")[2].partition("<")[0]
            href, title = re.split(r"[\s<>]", href, maxsplit=1)[0], title_in_href or title
            self.losses.hidden += sum(len(LINK_START.findall(each)) for each in attributes.values())
        self.losses.damaged += entry.is_damaged or entry.has_lost_text
        if clean(title) == clean(href):
            # Browsers export a link without a title with its URL as the title.
            title = ""
        title, is_shortened = _shorten(clean, title, TITLE_LENGTH)
        self.losses.titles += is_shortened
        note, is_shortened = _shorten(clean_lines, entry.note, DESCRIPTION_LENGTH)
        self.losses.notes += is_shortened
        tags, is_changed = _parse_tags([*attributes.get("tags", "").split(","), *folders])
        self.losses.tags += is_changed and not entry.is_damaged
        if self.count <= self._skip:
            return
        added = attributes.get("add_date", attributes.get("time_added", ""))
        self._found.append(
            Bookmark(
                _parse_url(href),
                title,
                note,
                tags,
                attributes.get("archived") == "1",
                _parse_time(added.strip()),
            )
        )


def format_bookmark(
    url: str,
    title: str,
    *,
    description: str = "",
    tags: Sequence[str] = (),
    archived: bool = False,
    created_at: datetime,
) -> str:
    """Format one link, to be written between `FILE_HEADER` and `FILE_FOOTER`.

    `BookmarkParser` parses it to the same link, with the time in whole seconds.
    """
    href = _escape(url)
    added = int(created_at.timestamp())
    tags_attribute = f' TAGS="{_escape(",".join(tags))}"' if tags else ""
    archived_attribute = ' ARCHIVED="1"' if archived else ""
    attributes = f'HREF="{href}" ADD_DATE="{added}"{tags_attribute}{archived_attribute}'
    line = f"    <DT><A {attributes}>{_escape(title) or href}</A>\n"
    # Line breaks of a note are preserved.
    note = "\n".join(map(_escape, description.split("\n")))
    return f"{line}    <DD>{note}\n" if description else line


FILE_HEADER = """<!DOCTYPE NETSCAPE-Bookmark-file-1>
<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">
<TITLE>Bookmarks</TITLE>
<H1>Bookmarks</H1>
<DL><p>
"""
FILE_FOOTER = "</DL><p>\n"


def _resynchronize(text: str) -> str:
    """Close open tags and comments before each entry, and turn raw text elements into text.

    By the rules of HTML5, an unclosed quote or an unescaped `<!--`, `<title>` or `<textarea>` in a
    title can hide hundreds of links. With the markers added here, the damage ends at the next
    `<DT>`. `_BookmarkTarget` removes the markers.
    """
    return ENTRY_START.sub(f"{RESYNC_TEXT}<", RAW_TEXT_START.sub(f"<{RAW_MARK}", text))


def _shorten(rule: Callable[[str], str], text: str, limit: int) -> tuple[str, bool]:
    """Clean a text with `rule` and cut it to `limit`; return it, and whether it was shortened."""
    found = rule(text)
    return found[:limit].rstrip(), len(found) > limit or len(text) >= MAX_TEXT_CHARACTERS


def _escape(text: str) -> str:
    return " ".join(escape(text).split())  # on one line


def _parse_url(href: str) -> str | None:
    # A URL without a scheme is relative to the file.
    if not href.lower().startswith(("https://", "http://")):
        return None
    try:
        return urls.normalize_url(href)
    except ValueError:
        return None


def _parse_tags(words: Iterable[str]) -> tuple[list[str], bool]:
    """Convert words to at most 20 sorted tags; return whether any was changed or skipped."""
    found: set[str] = set()
    is_changed = False
    for word in map(str.strip, words):
        tag = tags.tag_from_text(word)
        # Only the case and the spaces of a word may change unnoticed.
        is_changed |= (tag or "") != "-".join(tags.fold_tag(word).split())
        if tag is None or tag in found:
            continue
        if len(found) == MAX_TAGS:
            return sorted(found), True
        found.add(tag)
    return sorted(found), is_changed


def _parse_time(text: str) -> datetime | None:
    """Parse a Unix time in seconds; some files have milliseconds or microseconds."""
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
    return time if EARLIEST_TIME <= time <= datetime.now(UTC) + timedelta(days=1) else None
