"""Detect the character encoding of a document like a browser.

https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding
"""

import codecs
import re

__all__ = ["create_decoder"]

PRESCAN_BYTES = 2048  # a declaration counts only within this many bytes

META = re.compile(
    rb"""<meta[^>]{0,200}?charset\s{0,9}=[\s"']{0,9}([a-z0-9_:.-]{1,40})""", re.IGNORECASE
)
XML = re.compile(
    rb"""\s{0,9}<\?xml[^>]{0,200}?encoding\s{0,9}=\s{0,9}["']([a-z0-9_:.-]{1,40})""", re.IGNORECASE
)
# Byte order marks, and the start of an XML declaration in UTF-16.
PREFIXES = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (b"<\x00?\x00x\x00", "utf-16-le"),
    (b"\x00<\x00?\x00x", "utf-16-be"),
)
# An allowlist: some of Python's codecs are slow on hostile input (idna, punycode), and Python
# caches every unknown codec name. The labels are those that browsers accept:
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
LABELS = {label: codec for codec, labels in CODECS.items() for label in labels.split()}


def create_decoder(
    start: bytes, declared: str | None = None, *, lenient: bool = False
) -> codecs.IncrementalDecoder:
    """Return an incremental decoder for a document. It replaces invalid bytes with U+FFFD.

    A document that declares no encoding is decoded as UTF-8, and its invalid bytes as
    windows-1252.

    Args:
        start: the beginning of the document, at least 2 KiB unless it is shorter.
        declared: the charset parameter of the Content-Type header.
        lenient: also decode invalid bytes as windows-1252 if the document declares UTF-8.
    """
    codec = _codec(start, declared)
    is_fallback = codec is None or (lenient and codec == "utf-8")
    return codecs.getincrementaldecoder(codec or "utf-8")(FALLBACK if is_fallback else "replace")


def _codec(start: bytes, declared: str | None) -> str | None:
    for prefix, codec in PREFIXES:
        if start.startswith(prefix):
            return codec
    if codec_of_header := _codec_of_label(declared or ""):
        return codec_of_header
    match = META.search(start[:PRESCAN_BYTES]) or XML.match(start[:PRESCAN_BYTES])
    found = _codec_of_label(match[1].decode()) if match else None
    # A declaration that could be read as ASCII is not UTF-16. Browsers use UTF-8 instead.
    return "utf-8" if found and found.startswith("utf-16") else found


def _codec_of_label(label: str) -> str | None:
    return LABELS.get(label.strip().lower().replace("_", "-"))


FALLBACK = "quart_upsun.charsets.windows-1252"


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return wrong.decode("cp1252", "replace"), error.end


codecs.register_error(FALLBACK, _as_windows_1252)
