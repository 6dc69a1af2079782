"""What a page says about itself: title, description, icons. Strangers wrote it, so nothing is
believed: neither the markup, nor the character set, nor the type of an image.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

MAX_BYTES = 512 * 1024  # of a page that are looked at
MAX_TITLE, MAX_DESCRIPTION = 300, 1000  # characters
MAX_URL = 2048
MAX_ICONS = 5
MAX_PARTS = 20_000  # tags and texts before the body; each takes some microseconds
# Characters that are parsed at a time, and that may wait for the end of a tag: the parser takes up
# to 250 bytes of memory for each of them.
WINDOW = 32 * 1024
USUAL_ICON = 32  # pixels, at least: what looks sharp where an icon of a site is shown

# Control characters and lone surrogates, and what is invisible but turns around or hides the text
# beside it. White space is not in here: it becomes one blank.
HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
META_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s{0,9}=[\s"']{0,9}([a-z0-9_:.-]{1,40})""", re.IGNORECASE
)
BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# Python knows more codecs than pages use, some of them slow on purpose-made input (idna, punycode),
# and remembers every unknown name it was ever asked for. The names mean what they mean to browsers:
# https://encoding.spec.whatwg.org/#names-and-labels
CODECS = {
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8",
    "cp1252": "ascii us-ascii latin1 iso-8859-1 iso8859-1 windows-1252 cp1252",
    "cp1254": "iso-8859-9 windows-1254 cp1254",
    "cp874": "iso-8859-11 tis-620 windows-874",
    "koi8-r": "koi8-r",
    "koi8-u": "koi8-u",
    "cp866": "ibm866 cp866",
    "mac-roman": "macintosh",
    "gb18030": "gb2312 gbk gb18030 x-gbk",
    "big5hkscs": "big5 big5-hkscs",
    "cp932": "shift-jis sjis x-sjis windows-31j ms932",
    "euc-jp": "euc-jp x-euc-jp",
    "iso2022-jp": "iso-2022-jp",
    "cp949": "euc-kr ks-c-5601-1987 windows-949",
    "utf-16-le": "utf-16 utf-16le",
    "utf-16-be": "utf-16be",
    **{f"cp125{n}": f"windows-125{n} cp125{n}" for n in (0, 1, 3, 5, 6, 7, 8)},
    **{f"iso8859-{n}": f"iso-8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
}
CHARSETS = {label: codec for codec, labels in CODECS.items() for label in labels.split()}
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
    """Read the head of a page, whatever it is. For a thread: some pages take 200 ms and 30 MB.

    Args:
        content: the page, or the beginning of one.
        charset: what the header of the response says.
        url: where the page was found, after redirects.
    """
    content = content[:MAX_BYTES]
    parser = _Parser()
    text = content.decode(_charset(content, charset), "replace")
    # It raises what it likes for some broken markup, and _Enough; what it has seen by then is good.
    # It is not closed: to look for an end to every tag that has none takes hours.
    with suppress(Exception):
        for start in range(0, len(text), WINDOW):
            parser.feed(text[start : start + WINDOW])
            if len(parser.rawdata) > WINDOW:
                # A tag or script without end is passed over, but not half of a "</script>".
                parser.rawdata = parser.rawdata[-16:]
        if parser.in_title:  # what still waits for the end of the title
            parser.title.append(unescape(parser.rawdata.partition("<")[0]))
    title = parser.said.get("og:title") or _clean("".join(parser.title), MAX_TITLE)
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


class _Enough(Exception):
    """The rest of the page has nothing to add."""


class _Parser(HTMLParser):
    """Collects what stands in a head, or where a head ought to be."""

    def __init__(self) -> None:
        super().__init__()
        self.title: list[str] = []
        self.said: dict[str, str] = {}
        self.base: str | None = None
        self.icons: list[tuple[tuple[int, int], str]] = []  # rank, and where it is
        self.in_title = self._had_title = False
        self._parts = 0

    def updatepos(self, i: int, j: int) -> int:
        # Called between any two parts, for line numbers that nobody wants here.
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _Enough
        return j

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self.in_title = not self._had_title
            self._had_title = True
        elif tag == "body" and self._had_title:
            raise _Enough
        elif tag in {"meta", "link", "base"}:
            said = {name: value or "" for name, value in reversed(attrs)}  # the first one counts
            if tag == "meta":
                self._meta(said)
            elif tag == "link":
                self._link(said)
            elif self.base is None and "href" in said:
                self.base = said["href"].strip()

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.in_title = False

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title.append(data)

    def _meta(self, said: dict[str, str]) -> None:
        name = (said.get("property") or said.get("name") or "").strip().lower()
        limits = {"og:title": MAX_TITLE, "og:description": MAX_DESCRIPTION}
        if name in {*limits, "description"} and not self.said.get(name):
            self.said[name] = _clean(said.get("content", ""), limits.get(name, MAX_DESCRIPTION))

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


def _charset(content: bytes, declared: str | None) -> str:
    """Return the codec of a page: by its byte order mark, the header, the page; else UTF-8."""
    for mark, codec in BOMS:
        if content.startswith(mark):
            return codec
    match = META_CHARSET.search(content[:2048])
    said = CHARSETS.get(match[1].decode().lower().replace("_", "-"), "utf-8") if match else "utf-8"
    if said.startswith("utf-16"):
        said = "utf-8"  # or it could not have been read
    return CHARSETS.get((declared or "").strip().lower().replace("_", "-"), said)


def _clean(text: str, limit: int) -> str:
    return " ".join(HIDDEN.sub("", text).split())[:limit].rstrip()


def _absolute(base: str, href: str) -> str | None:
    """Resolve a reference; None if it does not lead to the web."""
    with suppress(ValueError):
        if len(href) <= MAX_URL:
            url = urljoin(base, href)
            parts = urlsplit(url)
            if parts.scheme in {"http", "https"} and parts.hostname and len(url) <= MAX_URL:
                return url
    return None
