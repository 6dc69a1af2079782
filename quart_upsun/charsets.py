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
COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
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
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8",
    "cp1252": "ascii us-ascii ansi-x3.4-1968 cp819 ibm819 iso-8859-1:1987"
    " latin1 l1 csisolatin1 iso-ir-100 iso-8859-1 iso8859-1 iso88591",
    "cp1254": "latin5 l5 csisolatin5 iso-ir-148 iso-8859-9 iso8859-9 iso88599 iso-8859-9:1989",
    "cp874": "iso-8859-11 iso8859-11 iso885911 tis-620 windows-874 dos-874",
    "koi8-r": "koi8-r koi8 koi cskoi8r",
    "koi8-u": "koi8-u koi8-ru",
    "cp866": "ibm866 cp866 866 csibm866",
    "mac-roman": "macintosh mac x-mac-roman csmacintosh",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "gb18030 gb2312 gb-2312 gb-2312-80 gbk x-gbk chinese csgb2312 csiso58gb231280"
    " iso-ir-58",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "cp932": "shift-jis sjis x-sjis windows-31j ms932 ms-kanji csshiftjis",
    "euc-jp": "euc-jp x-euc-jp cseucpkdfmtjapanese",
    "iso2022-jp": "iso-2022-jp csiso2022jp",
    "cp949": "euc-kr korean cseuckr windows-949 iso-ir-149 ks-c-5601-1987 ks-c-5601-1989 ksc5601"
    " ksc-5601 csksc56011987",
    "utf-16-le": "utf-16 utf-16le unicode unicodefeff ucs-2 iso-10646-ucs-2 csunicode",
    "utf-16-be": "utf-16be unicodefffe",
    "iso8859-2": "latin2 l2 csisolatin2 iso-ir-101 iso-8859-2:1987",
    "iso8859-3": "latin3 l3 csisolatin3 iso-ir-109 iso-8859-3:1988",
    "iso8859-4": "latin4 l4 csisolatin4 iso-ir-110 iso-8859-4:1988",
    "iso8859-5": "cyrillic csisolatincyrillic iso-ir-144 iso-8859-5:1988",
    "iso8859-6": "arabic csisolatinarabic iso-ir-127 iso-8859-6:1987 asmo-708 ecma-114 iso-8859-6-e"
    " iso-8859-6-i csiso88596e csiso88596i",
    "iso8859-7": "greek greek8 csisolatingreek iso-ir-126 iso-8859-7:1987 ecma-118 elot-928"
    " sun-eu-greek",
    "iso8859-8": "hebrew csisolatinhebrew iso-ir-138 iso-8859-8:1988 iso-8859-8-e csiso88598e"
    " visual iso-8859-8-i csiso88598i logical",
    "iso8859-10": "latin6 l6 csisolatin6 iso-ir-157",
    "iso8859-15": "l9 csisolatin9",
}
LABELS = {label: codec for codec, labels in CODECS.items() for label in labels.split()}
for _n in range(9):
    LABELS |= dict.fromkeys((f"windows-125{_n}", f"cp125{_n}", f"x-cp125{_n}"), f"cp125{_n}")
for _n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16):
    LABELS |= dict.fromkeys((f"iso-8859-{_n}", f"iso8859-{_n}", f"iso8859{_n}"), f"iso8859-{_n}")


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
    head = COMMENT.sub(b"", start[:PRESCAN_BYTES])
    match = META.search(head) or XML.match(head)
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
