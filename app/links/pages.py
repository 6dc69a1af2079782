"""What a page says about itself: title, description, icons. Strangers wrote it, so nothing is
believed: neither the markup, nor the character set, nor the type of an image.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

from lxml import etree

from app.links import charsets
from app.text import clean

MAX_BYTES = 512 * 1024  # of a page that are looked at
MAX_TITLE, MAX_DESCRIPTION = 300, 1000  # characters
MAX_URL = 2048
MAX_ICONS = 5
USUAL_ICON = 32  # pixels, at least: what looks sharp where an icon of a site is shown

CUT_OFF_TAG = re.compile(r"</t?i?t?l?e?\Z", re.IGNORECASE)
FOREIGN = frozenset({"svg", "math"})
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\x00\x00\x01\x00": "image/x-icon",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\xff\xd8\xff": "image/jpeg",
}


@dataclass(frozen=True)
class Page:
    """What a page says: plain text, None where it says nothing; addresses of icons, best first."""

    title: str | None
    description: str | None
    icons: list[str]


def describe(content: bytes, charset: str | None, url: str) -> Page:
    """Read what a page says of itself, whatever it is. For a thread: some pages take 100 ms.

    Args:
        content: the page, or the beginning of one.
        charset: what the header of the response says.
        url: where the page was found, after redirects.
    """
    parser = _Parser()
    reader = etree.HTMLParser(target=cast(Any, parser))
    reader.feed(charsets.decode(content[:MAX_BYTES], charset))
    with suppress(etree.LxmlError):  # of an empty page
        reader.close()
    # The page may be cut off in the tag that ends the title.
    title = CUT_OFF_TAG.sub("", "".join(parser.title))
    title = parser.said.get("og:title") or clean(title, MAX_TITLE)
    description = parser.said.get("og:description") or parser.said.get("description")
    base = _absolute(url, parser.base or "") or url
    found = [_absolute(base, href) for _, href in sorted(parser.icons, key=lambda icon: icon[0])]
    icons = [icon for icon in dict.fromkeys(found) if icon][: MAX_ICONS - 1]
    usual = _absolute(url, "/favicon.ico")
    if usual and usual not in icons:
        icons.append(usual)
    return Page(title or None, description or None, icons)


def icon_type(content: bytes) -> str | None:
    """Return the media type of an image by its first bytes; None if it is none a site may show.

    SVG is none: it is a document that can hold scripts.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)


class _Parser:
    """Collects what a page says of itself, as the target of a parser."""

    def __init__(self) -> None:
        self.title: list[str] = []
        self.said: dict[str, str] = {}
        self.base: str | None = None
        self.icons: list[tuple[tuple[int, int], str]] = []  # rank, and where it is
        self._in_title = self._had_title = False
        self._foreign = 0  # elements of SVG and MathML that this is in: their titles are others

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag in FOREIGN:
            self._foreign += 1
        elif tag == "title" and not self._foreign:
            self._in_title = not self._had_title
            self._had_title = True
        elif tag == "meta":
            self._meta(attributes)
        elif tag == "link":
            self._link(attributes)
        elif tag == "base" and self.base is None and "href" in attributes:
            self.base = attributes["href"].strip()

    def end(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in FOREIGN:
            self._foreign -= 1

    def data(self, text: str) -> None:
        if self._in_title and len(self.title) < MAX_TITLE:
            self.title.append(text)

    def close(self) -> None:
        """Nothing: what was seen is in the attributes."""

    def _meta(self, said: Mapping[str, str]) -> None:
        name = (said.get("property") or said.get("name") or "").strip().lower()
        limits = {"og:title": MAX_TITLE, "og:description": MAX_DESCRIPTION}
        if name in {*limits, "description"} and not self.said.get(name):
            self.said[name] = clean(said.get("content", ""), limits.get(name, MAX_DESCRIPTION))

    def _link(self, said: Mapping[str, str]) -> None:
        rel, kind = set(said.get("rel", "").lower().split()), said.get("type", "").lower()
        touch = bool(rel & {"apple-touch-icon", "apple-touch-icon-precomposed"})
        href = said.get("href", "").strip()
        if not href or "svg" in kind or not (touch or "icon" in rel):
            return
        sizes = [int(size) for size in re.findall(r"\b(\d{1,4})x\d{1,4}\b", said.get("sizes", ""))]
        largest = max(sizes, default=180 if touch else 0)
        # The smallest that is sharp, then the largest of the others. A touch icon is a picture that
        # fills a button: good, but the last choice of those that are sharp.
        rank = (0, largest) if largest >= USUAL_ICON else (1, -largest)
        if len(self.icons) < 10 * MAX_ICONS:
            self.icons.append((rank, href))


def _absolute(base: str, href: str) -> str | None:
    """Resolve a reference; None if it does not lead to the web."""
    with suppress(ValueError):
        if len(href) <= MAX_URL:
            url = urljoin(base, href)
            parts = urlsplit(url)
            if parts.scheme in {"http", "https"} and parts.hostname and len(url) <= MAX_URL:
                return url
    return None
