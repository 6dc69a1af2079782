"""The bookmark file that all browsers write, read as it comes in pieces.

There is no standard, but for what the first browser did and the others took over:
https://learn.microsoft.com/en-us/previous-versions/windows/internet-explorer/ie-developer/platform-apis/aa753582(v=vs.85)

Strangers wrote it, so nothing is believed. It is not read with `html.parser`: what that makes of
markup which never ends differs between patch releases of Python, and takes time that grows with the
square of its length. Here nothing is looked at twice but the beginning of a tag whose end has not
come yet, and that is bounded.
"""

import codecs
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import escape, unescape
from typing import NamedTuple

from app.links import addresses
from app.links.models import TAGS, TITLE_LENGTH, URL_LENGTH
from app.links.pages import BOMS, CHARSETS, HIDDEN, META_CHARSET

LONGEST_TAG = 1024 * 1024  # characters: browsers put a site's icon, and scripts, into one
LONGEST_TEXT = 4096  # characters of a title or a heading that are looked at
MOST_TAGS = 1_000_000  # in all; each takes some microseconds, and a link is in six of them
DEEPEST = 50  # folders in folders that become tags

# Possessive, so that what does not match is not tried in another way.
TAG = re.compile(
    r"""<(/?)([a-z][a-z0-9]*+)((?:[^<>"']++|"[^"]*+"|'[^']*+')*+)(>)?""", re.IGNORECASE
)
ATTRIBUTE = re.compile(
    r"""(?<![\w-])([a-z][\w-]*+)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s"'>]++))""", re.IGNORECASE
)
ENDS_TEXT = {"dt", "dd", "dl", "hr", "li", "ul", "ol"}

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
    """None if it is none that is kept: a script, a file, a search."""
    title: str
    tags: list[str]
    archived: bool
    created_at: datetime | None
    """None if the file does not tell, or not the truth."""


class Reader:
    """Takes the file in pieces, and gives the links that have ended. For a thread: each takes time.

    Args:
        skip: links that are only counted.
        most: after so many nothing is read any more.

    Attributes:
        count: how many links there were so far.
        is_full: whether there are more than `most`.
    """

    def __init__(self, *, skip: int = 0, most: int) -> None:
        self.count = 0
        self.is_full = False
        self._skip, self._most = skip, most
        self._decoder: codecs.IncrementalDecoder | None = None
        self._rest = ""  # the beginning of a tag
        self._until = ""  # what ends the comment or declaration that this is in
        self._text: list[str] | None = None  # of the link or heading that this is in
        self._length = 0
        self._tags = 0
        self._link: dict[str, str] | None = None  # attributes
        self._heading: dict[str, str] | None = None
        self._folder: str | None = None  # what is in the next list becomes a tag
        self._folders: list[str | None] = []
        self._deeper = 0
        self._found: list[Bookmark] = []

    def feed(self, content: bytes) -> list[Bookmark]:
        """Read a piece; the first must hold what says the character set, if anything does.

        Raises:
            Malformed: with a sentence.
        """
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder(_codec(content))("replace")
        if self.is_full:
            return []
        self._rest = self._scan(self._rest + self._decoder.decode(content))
        if len(self._rest) > LONGEST_TAG:
            raise Malformed("The file is broken: it holds a tag without an end.")
        found, self._found = self._found, []
        return found

    def close(self) -> list[Bookmark]:
        """Return the link that only the end of the file has ended, if there is one."""
        self._end_text()
        return self._found

    def _scan(self, text: str) -> str:
        """Read a text, and return what must wait for more."""
        at = 0
        while not self.is_full:
            if self._until:
                end = text.find(self._until, at)
                if end < 0:
                    return text[max(at, len(text) - len(self._until) + 1) :]
                at, self._until = end + len(self._until), ""
            start = text.find("<", at)
            if start < 0:
                self._add(text[at:])
                return ""
            self._add(text[at:start])
            if len(text) - start < 4:  # it may become "<!--"
                return text[start:]
            self._tags += 1
            if self._tags > MOST_TAGS:
                raise Malformed("The file is broken: it holds nearly nothing but markup.")
            if text[start + 1] in "!?":
                is_comment = text.startswith("<!--", start)
                self._until, at = ("-->", start + 4) if is_comment else (">", start + 2)
                continue
            tag = TAG.match(text, start)
            if tag is None:
                self._add("<")
                at = start + 1
                continue
            at = tag.end()
            if tag[4]:
                self._tag(tag[2].lower(), tag[3], is_end=bool(tag[1]))
            elif at < len(text) and text[at] == "<":
                self._add(tag[0])  # it was none
            else:
                return text[start:]
        return ""

    def _add(self, text: str) -> None:
        if self._text is not None and self._length < LONGEST_TEXT:
            self._text.append(text[: LONGEST_TEXT - self._length])
            self._length += len(text)

    def _tag(self, name: str, attributes: str, *, is_end: bool) -> None:
        if name in {"a", "h3"}:
            self._end_text()
            if not is_end:
                found = _attributes(attributes)
                if name == "h3":
                    self._heading, self._text = found, []
                elif "href" in found:
                    self._link, self._text = found, []
        elif name in ENDS_TEXT:
            self._end_text()
            if name == "dl":
                self._leave() if is_end else self._enter()

    def _enter(self) -> None:
        if len(self._folders) < DEEPEST:
            self._folders.append(self._folder)
        else:
            self._deeper += 1
        self._folder = None

    def _leave(self) -> None:
        self._folder = None
        if self._deeper:
            self._deeper -= 1
        elif self._folders:
            self._folders.pop()

    def _end_text(self) -> None:
        """End the link or heading that this is in."""
        text = _clean("".join(self._text or []))
        if self._heading is not None:
            is_place = text.lower() in PLACES or bool(self._heading.keys() & PLACE_ATTRIBUTES)
            self._folder = None if is_place else text
        elif self._link is not None:
            self._end_link(self._link, text)
        self._link = self._heading = self._text = None
        self._length = 0

    def _end_link(self, attributes: dict[str, str], title: str) -> None:
        if self.count >= self._most:
            self.is_full = True
            return
        self.count += 1
        if self.count <= self._skip:
            return
        href = unescape(attributes["href"][: 8 * URL_LENGTH]).strip()
        words = [
            *unescape(attributes.get("tags", "")[:LONGEST_TEXT]).split(","),
            *(folder for folder in reversed(self._folders) if folder),
        ]
        added = attributes.get("add_date", attributes.get("time_added", ""))
        self._found.append(
            Bookmark(
                _address(href),
                # A link without a title is shown, and exported, under its address.
                "" if title == href[:TITLE_LENGTH] else title,
                _tags(words),
                attributes.get("archived") == "1",
                _time(added),
            )
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

    But for what is finer than a second, and the description: a fetch finds that again.
    """
    href = _escaped(url)
    added = int(created_at.timestamp())
    words = f' TAGS="{_escaped(",".join(tags))}"' if tags else ""
    mark = ' ARCHIVED="1"' if archived else ""
    line = (
        f'    <DT><A HREF="{href}" ADD_DATE="{added}"{words}{mark}>{_escaped(title) or href}</A>\n'
    )
    return f"{line}    <DD>{_escaped(description)}\n" if description else line


HEAD = """<!DOCTYPE NETSCAPE-Bookmark-file-1>
<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">
<TITLE>Bookmarks</TITLE>
<H1>Bookmarks</H1>
<DL><p>
"""
FOOT = "</DL><p>\n"


def _escaped(text: str) -> str:
    return " ".join(escape(text).split())  # on one line


def _codec(start: bytes) -> str:
    """Return the codec of a file: by its byte order mark or its head; else UTF-8."""
    for mark, codec in BOMS:
        if start.startswith(mark):
            return codec
    match = META_CHARSET.search(start[:2048])
    codec = CHARSETS.get(match[1].decode().lower().replace("_", "-"), "utf-8") if match else "utf-8"
    # It could not have been read in UTF-16.
    return "utf-8" if codec.startswith("utf-16") else codec


def _attributes(text: str) -> dict[str, str]:
    """Return the attributes of a tag, as they are written; of the same name the first."""
    found: dict[str, str] = {}
    for name, *values in ATTRIBUTE.findall(text):
        found.setdefault(name.lower(), "".join(values))
    return found


def _clean(text: str) -> str:
    return " ".join(HIDDEN.sub("", unescape(text)).split())[:TITLE_LENGTH].rstrip()


def _address(href: str) -> str | None:
    # What has no scheme is a page beside the file, and no host.
    if not href.lower().startswith(("https://", "http://")):
        return None
    try:
        return addresses.normalize(href)
    except ValueError:
        return None


def _tags(words: Sequence[str]) -> list[str]:
    """Return the tags that words of any kind make: the first ones, sorted, each once."""
    found: dict[str, None] = {}
    for word in words[: 5 * TAGS]:
        if len(found) == TAGS:
            break
        if tag := addresses.as_tag(word):
            found[tag] = None
    return sorted(found)


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
