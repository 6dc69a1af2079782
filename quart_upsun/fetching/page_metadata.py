"""Read the title, description and icons of an HTML page. All input is untrusted.

docs/decisions/html-parser.md says why lxml parses the pages.
"""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from lxml import etree

from quart_upsun import charsets
from quart_upsun.fetching.fetcher import ICON_BYTES, Fetched, Fetcher
from quart_upsun.fetching.public_network import FetchError
from quart_upsun.fetching.turns import HostBusyError, Visit
from quart_upsun.text import clean
from quart_upsun.time_limits import pause_time_limit

MAX_BYTES = 512 * 1024  # the rest of a page is ignored
MAX_TITLE, MAX_DESCRIPTION = 300, 1000  # characters
MAX_URL = 2048  # characters
MAX_ICONS = 5
ICONS_TRIED = 3
ICON_WAIT_SECONDS = 5.0  # wait this long for a turn at the icon's host
WINDOW = 32 * 1024  # characters to encode and parse at a time, to limit memory
MIN_SHARP_ICON = 32  # pixels
FOREIGN = {"svg", "math", "template"}  # a <title> inside these is not the page's title

SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\x00\x00\x01\x00": "image/x-icon",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\xff\xd8\xff": "image/jpeg",
}


@dataclass(frozen=True)
class PageMetadata:
    """The metadata of a page."""

    title: str | None
    """Plain text, at most 300 characters. None if the page has no title."""
    description: str | None
    """Plain text, at most 1,000 characters. None if the page has no description."""
    icons: list[str]
    """Absolute URLs, the best first, at most 5."""


async def fetch_page(
    fetcher: Fetcher, url: str, visit: Visit
) -> tuple[PageMetadata, Fetched | None]:
    """Fetch a page and its icon, and return the page's metadata and the icon.

    The icon is None if the page has no usable one: a raster image of at most 64 KiB.

    Raises:
        FetchError: the page could not be fetched. Errors of icons are ignored.
        HostBusyError: the page's host has no free turn.
    """
    fetched = await fetcher.get(url, truncate=True, visit=visit, max_wait=0)
    with pause_time_limit():  # waiting for a free thread does not count
        page = await asyncio.to_thread(read_metadata, fetched.content, fetched.charset, fetched.url)
    for icon_url in page.icons[:ICONS_TRIED]:
        try:
            icon = await fetcher.get(
                icon_url,
                accept="image/*",
                max_bytes=ICON_BYTES,
                content_types=None,
                visit=visit,
                max_wait=ICON_WAIT_SECONDS,
            )
        except (FetchError, HostBusyError):
            continue
        if image_type(icon.content):
            return page, icon
    return page, None


def read_metadata(content: bytes, charset: str | None, url: str) -> PageMetadata:
    """Read the metadata of a page.

    This is synchronous. Call it in a thread: some pages take 200 ms and 20 MB.

    Args:
        content: the page or its beginning, as bytes.
        charset: the charset parameter of the Content-Type header.
        url: the URL of the page after redirects.
    """
    content = content[:MAX_BYTES]
    text = charsets.create_decoder(content, charset).decode(content).replace("\0", "")
    # lxml caches tag and attribute names until the thread ends, and a page can have 60,000 new
    # ones. So each page gets its own thread.
    with ThreadPoolExecutor(1, "page") as thread:
        head = thread.submit(_parse, text).result()
    title = head.metadata.get("og:title") or clean("".join(head.title), MAX_TITLE)
    description = head.metadata.get("og:description") or head.metadata.get("description")
    base = _absolute_url(url, head.base or "") or url
    found = [_absolute_url(base, href) for _, href in sorted(head.icons, key=lambda icon: icon[0])]
    icons = [icon for icon in dict.fromkeys(found) if icon][: MAX_ICONS - 1]
    default_icon = _absolute_url(url, "/favicon.ico")
    if default_icon and default_icon not in icons:
        icons.append(default_icon)
    return PageMetadata(title or None, description or None, icons)


def image_type(content: bytes) -> str | None:
    """Return the media type of a raster image by its magic number, else None.

    SVG is not supported, because SVG documents can contain scripts.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)


def _parse(text: str) -> "_Head":
    head = _Head()
    target: Any = head  # implements only some of the methods of lxml's type
    parser = etree.HTMLParser(target=target, encoding="utf-8", huge_tree=True)
    parser.feed(b"<!---->")  # lxml raises for an empty document
    for start in range(0, len(text), WINDOW):
        parser.feed(text[start : start + WINDOW].encode("utf-8", "replace"))
    is_title_open = head.in_title
    parser.close()
    if is_title_open:  # without its end tag, the title contains the rest of the page
        head.title = ["".join(head.title).partition("<")[0]]
    return head


class _Head:
    """A target for lxml's parser that collects metadata, inside and outside of `<head>`."""

    def __init__(self) -> None:
        self.title: list[str] = []
        self.metadata: dict[str, str] = {}
        self.base: str | None = None
        self.icons: list[tuple[tuple[int, int], str]] = []  # rank and href
        self.in_title = self._had_title = False
        self._foreign = 0  # the number of open FOREIGN elements

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Handle a start tag."""
        if tag in FOREIGN:
            self._foreign += 1
        elif tag == "title" and not self._foreign:
            self.in_title = not self._had_title
            self._had_title = True
        elif tag == "meta":
            self._meta(attributes)
        elif tag == "link":
            self._link(attributes)
        elif tag == "base" and self.base is None and "href" in attributes:
            self.base = attributes["href"].strip()

    def end(self, tag: str) -> None:
        """Handle an end tag. The parser adds missing ones."""
        if tag in FOREIGN:
            self._foreign -= 1
        elif tag == "title":
            self.in_title = False

    def data(self, data: str) -> None:
        """Handle text."""
        if self.in_title:
            self.title.append(data)

    def close(self) -> None:
        """Handle the end of the page."""

    def _meta(self, attributes: dict[str, str]) -> None:
        name = (attributes.get("property") or attributes.get("name") or "").strip().lower()
        limits = {"og:title": MAX_TITLE, "og:description": MAX_DESCRIPTION}
        if name in {*limits, "description"} and not self.metadata.get(name):
            content, limit = attributes.get("content", ""), limits.get(name, MAX_DESCRIPTION)
            self.metadata[name] = clean(content, limit)

    def _link(self, attributes: dict[str, str]) -> None:
        rel = set(attributes.get("rel", "").lower().split())
        is_touch_icon = bool(rel & {"apple-touch-icon", "apple-touch-icon-precomposed"})
        is_svg = "svg" in attributes.get("type", "").lower()
        href = attributes.get("href", "").strip()
        if not href or is_svg or not (is_touch_icon or "icon" in rel):
            return
        sizes = re.findall(r"\b(\d{1,4})x\d{1,4}\b", attributes.get("sizes", ""))
        largest = max(map(int, sizes), default=180 if is_touch_icon else 0)
        # Prefer the smallest sharp icon, then the largest of the others.
        rank = (0, largest) if largest >= MIN_SHARP_ICON else (1, -largest)
        if len(self.icons) < 10 * MAX_ICONS:
            self.icons.append((rank, href))


def _absolute_url(base: str, href: str) -> str | None:
    """Resolve a URL reference. Return None if the result is not an http or https URL."""
    with suppress(ValueError):
        if len(href) <= MAX_URL:
            url = urljoin(base, href)
            parts = urlsplit(url)
            if parts.scheme in {"http", "https"} and parts.hostname and len(url) <= MAX_URL:
                return url
    return None
