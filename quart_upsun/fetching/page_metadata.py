"""Read title, description and icons of a page. Neither its markup, nor its character set, nor the
type of an image is trusted.

lxml parses pages: docs/decisions/html-parser.md says why.
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

MAX_BYTES = 512 * 1024  # of a page that are looked at
MAX_TITLE, MAX_DESCRIPTION = 300, 1000  # characters
MAX_URL = 2048
MAX_ICONS = 5
ICONS_TRIED = 3
ICON_WAIT_SECONDS = 5.0  # that a page waits for a busy host of its icon
WINDOW = 32 * 1024  # characters that are encoded and parsed at a time, to bound memory
USUAL_ICON = 32  # pixels, at least: what looks sharp where an icon of a site is shown
FOREIGN = {"svg", "math", "template"}  # a title in one of these is not the page's

SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\x00\x00\x01\x00": "image/x-icon",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\xff\xd8\xff": "image/jpeg",
}


@dataclass(frozen=True)
class PageMetadata:
    """Plain text, None where the page has none; URLs of icons, the best first."""

    title: str | None
    description: str | None
    icons: list[str]


async def fetch_page(
    fetcher: Fetcher, url: str, visit: Visit
) -> tuple[PageMetadata, Fetched | None]:
    """Fetch a page and its icon within one visit, and return the page's metadata and the icon.

    The icon is None if the page has none that is an image.

    Raises:
        FetchError: the page could not be fetched.
        HostBusyError: the host has no free turn.
    """
    fetched = await fetcher.get(url, truncate=True, visit=visit, patience=0)
    with pause_time_limit():  # until one of the few threads is free
        page = await asyncio.to_thread(read_metadata, fetched.content, fetched.charset, fetched.url)
    for icon_url in page.icons[:ICONS_TRIED]:
        try:
            icon = await fetcher.get(
                icon_url,
                accept="image/*",
                max_bytes=ICON_BYTES,
                content_types=None,
                visit=visit,
                patience=ICON_WAIT_SECONDS,
            )
        except (FetchError, HostBusyError):
            continue
        if image_type(icon.content):
            return page, icon
    return page, None


def read_metadata(content: bytes, charset: str | None, url: str) -> PageMetadata:
    """Read the head of a page. Call it in a thread: some pages take 200 ms and 20 MB.

    Args:
        content: the page, or the beginning of one.
        charset: what the header of the response says.
        url: where the page was found, after redirects.
    """
    content = content[:MAX_BYTES]
    text = charsets.create_decoder(content, charset).decode(content).replace("\0", "")
    # lxml caches names of tags and attributes for as long as the thread lives, and a page can have
    # 60,000 new ones. A new thread frees them.
    with ThreadPoolExecutor(1, "page") as thread:
        head = thread.submit(_parse, text).result()
    title = head.said.get("og:title") or clean("".join(head.title), MAX_TITLE)
    description = head.said.get("og:description") or head.said.get("description")
    base = _absolute(url, head.base or "") or url
    found = [_absolute(base, href) for _, href in sorted(head.icons, key=lambda icon: icon[0])]
    icons = [icon for icon in dict.fromkeys(found) if icon][: MAX_ICONS - 1]
    usual = _absolute(url, "/favicon.ico")
    if usual and usual not in icons:
        icons.append(usual)
    return PageMetadata(title or None, description or None, icons)


def image_type(content: bytes) -> str | None:
    """Return the media type of a raster image by its first bytes, else None.

    SVG is excluded: it is a document that can hold scripts.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)


def _parse(text: str) -> "_Head":
    head = _Head()
    target: Any = head  # has only those of the methods that are needed
    parser = etree.HTMLParser(target=target, encoding="utf-8", huge_tree=True)
    parser.feed(b"<!---->")  # a document without any content would be an error
    for start in range(0, len(text), WINDOW):
        parser.feed(text[start : start + WINDOW].encode("utf-8", "replace"))
    is_cut = head.in_title
    parser.close()
    if is_cut:  # a title without an end would swallow the page
        head.title = ["".join(head.title).partition("<")[0]]
    return head


class _Head:
    """Collects what is in a head, or where a head should be: a target for lxml's parser."""

    def __init__(self) -> None:
        self.title: list[str] = []
        self.said: dict[str, str] = {}
        self.base: str | None = None
        self.icons: list[tuple[tuple[int, int], str]] = []  # rank, and where it is
        self.in_title = self._had_title = False
        self._foreign = 0  # how many elements of other languages are open

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Take a start tag."""
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
        """Take an end tag; the parser adds those that are missing."""
        if tag in FOREIGN:
            self._foreign -= 1
        elif tag == "title":
            self.in_title = False

    def data(self, data: str) -> None:
        """Take text."""
        if self.in_title:
            self.title.append(data)

    def close(self) -> None:
        """Take the end of the page."""

    def _meta(self, said: dict[str, str]) -> None:
        name = (said.get("property") or said.get("name") or "").strip().lower()
        limits = {"og:title": MAX_TITLE, "og:description": MAX_DESCRIPTION}
        if name in {*limits, "description"} and not self.said.get(name):
            self.said[name] = clean(said.get("content", ""), limits.get(name, MAX_DESCRIPTION))

    def _link(self, said: dict[str, str]) -> None:
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
