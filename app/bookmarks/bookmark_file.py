"""Parse and write the bookmark file that all browsers export.

There is no standard, only what Netscape did and others adopted:
https://learn.microsoft.com/en-us/previous-versions/windows/internet-explorer/ie-developer/platform-apis/aa753582(v=vs.85)

lxml splits the file, piece by piece, into tags and text by the rules of HTML5.
`_resynchronize` limits what a damaged file loses by those rules, and `Losses` counts it.
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
from app.links.models import DESCRIPTION_LENGTH, MAX_TAGS, TAG_LENGTH, TITLE_LENGTH
from quart_upsun import charsets, urls
from quart_upsun.text import clean, clean_lines

MAX_TAG_CHARACTERS = 1024 * 1024  # characters: browsers put a site's icon, and scripts, into one
MAX_TEXT_CHARACTERS = 4096  # characters of a title, note or heading that are looked at
# Start tags, end tags and comments: the parser keeps each element that is open. A link is in six of
# them, and its note may have a `<BR>` for each line.
MAX_MARKUP_TAGS, MAX_MARKUP_TAGS_PER_LINK = 1_000_000, 50
MAX_NAMES = 10_000  # of tags and attributes: lxml keeps each
MAX_FOLDER_DEPTH = 50  # folders in folders that become tags

# A tag that each bookmark, folder and list begins with.
ENTRY_START = re.compile(r"<(?=/?(?:dt|dd|dl|li)[\s>])", re.IGNORECASE)
# The contents of these are text up to their end tag, links and all.
RAW_TEXT_START = re.compile(
    r"<(?=/?(?:title|textarea|style|script|xmp|iframe|noembed|noframes|plaintext)[\s/>])",
    re.IGNORECASE,
)
LINK_START = re.compile(r"<a\s[^<]{0,100}?href", re.IGNORECASE)
# Private use characters, removed from the input: `_resynchronize` leaves them as marks.
RESYNC_MARK, RAW_MARK = "\U0010fffd", "\U0010fffc"
RESYNC_TEXT = f"{RESYNC_MARK}'\"-->"
INVALID_NAME_CHARACTERS = {*"\"'<", RESYNC_MARK}
MAX_TAG_NAME_LENGTH = 12  # characters of a tag that ENTRY and RAW must see at once

ENTRY_ENDING_TAGS = {"dt", "dl", "hr", "li", "ul", "ol"}
# Attributes that only bookmarks have: without one, a link in a note belongs to the note.
BOOKMARK_ATTRIBUTES = {
    "add_date",
    "last_modified",
    "last_visit",
    "icon",
    "icon_uri",
    "tags",
    "time_added",
}

# Folders that say where a browser shows them, and nothing about what is in them. In other languages
# they are known by their attributes, where they have any.
SPECIAL_FOLDERS = {
    *("bookmarks", "bookmarks bar", "bookmarks menu", "bookmarks toolbar", "other bookmarks"),
    *("mobile bookmarks", "favorites", "favorites bar", "reading list", "imported"),
}
SPECIAL_FOLDER_ATTRIBUTES = {"personal_toolbar_folder", "unfiled_bookmarks_folder"}

EARLIEST_TIME = datetime(1990, 1, 1, tzinfo=UTC)  # there was no web before


class Bookmark(NamedTuple):
    """A link of the file, in the form that is stored."""

    url: str | None
    """None if it cannot be saved: a script, a file, a search."""
    title: str
    description: str
    """The note; its lines are kept."""
    tags: list[str]
    archived: bool
    created_at: datetime | None
    """None if the file has no valid time for it."""


@dataclass
class Losses:
    """Counts of what an import shortened, left out or could not read."""

    titles: int = 0
    """Links whose title was longer than 300 characters."""
    notes: int = 0
    """Links whose note was longer than 1,000 characters."""
    tags: int = 0
    """Links that had more than 20 tags, or tags that were shortened or had no letters."""
    damaged: int = 0
    """Links whose markup was broken: parts of them may be missing."""
    hidden: int = 0
    """Links inside comments, or inside attributes of broken tags."""
    folder_notes: int = 0
    """Notes that belong to a folder."""
    is_cut_off: bool = False
    """Whether the file ends inside a tag or comment, so that links may be missing."""

    def summary(self) -> str | None:
        """Return what the owner should know; None if nothing was lost."""
        parts = [
            (self.titles, "title{s} shortened to 300 characters"),
            (self.notes, "note{s} shortened to 1,000 characters"),
            (self.tags, "link{s} with tags left out or shortened (20 tags of 40 characters fit)"),
            (self.damaged, "link{s} with broken markup: check title, tags and note"),
            (self.hidden, "link{s} inside comments or broken tags not imported"),
            (self.folder_notes, "folder note{s} not imported"),
        ]
        found = [f"{count:,} {what.format(s='s'[: count != 1])}" for count, what in parts if count]
        sentences = [f"{'; '.join(found)}."] if found else []
        if self.is_cut_off:
            sentences.append(
                "The file ends inside a tag or comment, so links may be missing at its end."
            )
        return " ".join(sentences) or None


@dataclass
class _Entry:
    """A link as the file has it."""

    attributes: dict[str, str]
    is_damaged: bool
    title: str = ""
    note: str = ""

    @property
    def href(self) -> str:
        # Firefox's live bookmarks may have nothing but the address of their feed.
        return (self.attributes.get("href") or self.attributes.get("feedurl", "")).strip()


class _BookmarkTarget:
    """Build links from the tags and texts that lxml reports.

    Args:
        keep: called with each complete link and its folders, the innermost first.
        losses: updated with what is lost.

    Attributes:
        tags: number of start tags, end tags and comments so far.
        events: those and the pieces of text. Each entity is a piece, so a note may have hundreds.
        names: distinct names of tags and attributes so far.
        has_ended: whether the comment at the end of the file was reached.
    """

    def __init__(self, on_link: Callable[[_Entry, Iterable[str]], None], losses: Losses) -> None:
        self.tags = self.events = 0
        self.names: set[str] = set()
        self.has_ended = False
        self._on_link, self._losses = on_link, losses
        self._text: list[str] | None = None  # of the title, note or heading that this is in
        self._length = 0
        self._entry: _Entry | None = None
        self._heading: dict[str, str] | None = None
        self._in_note = False
        self._note_href = ""  # of a link in a note
        self._folder: str | None = None  # what is in the next list becomes a tag
        self._folders: list[str | None] = []
        self._skipped_depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Take a start tag."""
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

    def end(self, tag: str) -> None:
        """Take an end tag; the parser adds those that are missing."""
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
        """Take text."""
        self.events += 1
        self._add(data)

    def comment(self, text: str) -> None:
        """Take a comment, or a declaration."""
        self.tags += 1
        self.events += 1
        self.has_ended = text == RESYNC_MARK
        # An unclosed comment that ENTRY has ended: it has swallowed part of a link.
        self._losses.damaged += text.endswith(f"{RESYNC_MARK}'\"")
        self._losses.hidden += len(LINK_START.findall(text))

    def close(self) -> None:
        """Take the end of the file."""

    def end_entry(self) -> None:
        """End the link that this is in, with its note."""
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
        """End the title, note or heading that this is in."""
        if self._text is None:
            return
        text = "".join(self._text).replace(RESYNC_TEXT, "").replace(RAW_MARK, "")
        if self._heading is not None:
            text = clean(text, TITLE_LENGTH)
            is_place = text.lower() in SPECIAL_FOLDERS or bool(
                self._heading.keys() & SPECIAL_FOLDER_ATTRIBUTES
            )
            self._folder = None if is_place else text
        elif self._entry is None:
            self._losses.folder_notes += self._in_note and bool(text.strip())
        elif self._in_note:
            self._entry.note += f"\n{text}"
        else:
            self._entry.title = text
        self._heading = self._text = None
        self._in_note, self._note_href, self._length = False, "", 0


class BookmarkParser:
    """Takes the file in pieces, and returns the links that are complete.

    Call `feed` and `close` in one thread that ends with the file: they take time, and lxml keeps
    every name of a tag or attribute for as long as the thread lives.

    Args:
        skip: count this many links at the beginning without returning them.
        most: stop after this many links.

    Attributes:
        count: how many links there were so far.
        is_full: whether there are more than `most`.
        error: a sentence for the owner if the file cannot be parsed any further, else None.
        losses: counts of what was shortened, left out or damaged so far.
    """

    def __init__(self, *, skip: int = 0, max_links: int) -> None:
        self.count = 0
        self.is_full = False
        self.error: str | None = None
        self.losses = Losses()
        self._skip, self._most = skip, max_links
        self._decoder: codecs.IncrementalDecoder | None = None
        self._target = _BookmarkTarget(self._keep, self.losses)
        self._parser: Any = None
        self._unparsed = ""  # the beginning of a tag
        self._unreported = 0  # characters since the last tag or text
        self._found: list[Bookmark] = []

    @property
    def is_finished(self) -> bool:
        """Whether the rest of the file is ignored."""
        return self.is_full or self.error is not None

    def feed(self, content: bytes) -> list[Bookmark]:
        """Parse a piece of the file; a charset declaration must be in the first one."""
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
        if self._parser is None:  # created here, in the thread that feeds it
            target: Any = self._target  # has only those of the methods that are needed
            self._parser = etree.HTMLParser(target=target, encoding="utf-8", huge_tree=True)
        text = self._unparsed + re.sub(f"[\0{RESYNC_MARK}{RAW_MARK}]", "", text)
        cut = -1 if is_end else text.rfind("<", max(len(text) - MAX_TAG_NAME_LENGTH, 0))
        self._unparsed = text[cut:] if cut >= 0 else ""
        text = _resynchronize(text[:cut] if cut >= 0 else text)
        # A tag or comment without an end swallows this comment, too.
        text += f"<!--{RESYNC_MARK}-->" if is_end else ""
        before = self._target.events
        self._parser.feed(text.encode("utf-8", "replace"))
        self._unreported = self._unreported + len(text) if self._target.events == before else 0
        if self._unreported > MAX_TAG_CHARACTERS:
            self.error = "The file is broken: it holds a tag or comment without an end."
        most_tags = MAX_MARKUP_TAGS + MAX_MARKUP_TAGS_PER_LINK * self.count
        if self._target.tags > most_tags or len(self._target.names) > MAX_NAMES:
            self.error = "The file is broken: it holds almost nothing but markup."

    def _keep(self, entry: _Entry, folders: Iterable[str]) -> None:
        if self.count >= self._most:
            self.is_full = True
        if self.is_full:
            return
        self.count += 1
        attributes, href, title = entry.attributes, entry.href, entry.title
        if entry.is_damaged:
            # An unclosed quote may have swallowed the title.
            swallowed = href.partition(">")[2].partition("<")[0]
            href, title = re.split(r"[\s<>]", href, maxsplit=1)[0], swallowed or title
            self.losses.damaged += 1
            self.losses.hidden += sum(len(LINK_START.findall(each)) for each in attributes.values())
        if clean(title) == clean(href):
            # A link without a title is shown, and exported, under its address.
            title = ""
        title, is_shortened = _shorten(clean, title, TITLE_LENGTH)
        self.losses.titles += is_shortened
        note, is_shortened = _shorten(clean_lines, entry.note, DESCRIPTION_LENGTH)
        self.losses.notes += is_shortened
        tags, is_shortened = _parse_tags([*attributes.get("tags", "").split(","), *folders])
        self.losses.tags += is_shortened
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
    """Return the lines of one link, between `FILE_HEADER` and `FILE_FOOTER`.

    A `BookmarkParser` returns the same link again, with the time in whole seconds.
    """
    href = _escape(url)
    added = int(created_at.timestamp())
    words = f' TAGS="{_escape(",".join(tags))}"' if tags else ""
    mark = ' ARCHIVED="1"' if archived else ""
    line = (
        f'    <DT><A HREF="{href}" ADD_DATE="{added}"{words}{mark}>{_escape(title) or href}</A>\n'
    )
    # The lines of a note are kept.
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
    title can swallow hundreds of links. With this, none reaches beyond the next `<DT>`.
    `_BookmarkTarget` removes the marks.
    """
    return ENTRY_START.sub(f"{RESYNC_TEXT}<", RAW_TEXT_START.sub(f"<{RAW_MARK}", text))


def _shorten(rule: Callable[[str], str], text: str, limit: int) -> tuple[str, bool]:
    """Return the text as `rule` cleans it and the limit cuts it, and whether it was shortened."""
    found = rule(text)
    return found[:limit].rstrip(), len(found) > limit or len(text) >= MAX_TEXT_CHARACTERS


def _escape(text: str) -> str:
    return " ".join(escape(text).split())  # on one line


def _parse_url(href: str) -> str | None:
    # What has no scheme is a page beside the file, and no host.
    if not href.lower().startswith(("https://", "http://")):
        return None
    try:
        return urls.normalize_url(href)
    except ValueError:
        return None


def _parse_tags(words: Iterable[str]) -> tuple[list[str], bool]:
    """Return the tags made of words, sorted, and whether any was shortened or left out.

    The first 20 are kept.
    """
    found: set[str] = set()
    is_shortened = False
    for word in map(str.strip, words):
        tag = tags.tag_from_text(word)
        if tag is None:
            is_shortened |= bool(word)
        elif tag in found:
            continue
        elif len(found) == MAX_TAGS:
            return sorted(found), True
        else:
            is_shortened |= len(tag) == TAG_LENGTH < len(word)
            found.add(tag)
    return sorted(found), is_shortened


def _parse_time(text: str) -> datetime | None:
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
    return time if EARLIEST_TIME <= time <= datetime.now(UTC) + timedelta(days=1) else None
