"""The character set of a page or a bookmark file, as browsers find it out.

A byte order mark wins, then what the response's header says, then what the document says of itself.
Without any of them it is UTF-8 if it can be, else windows-1252.
"""

import codecs
import re

_META = re.compile(
    rb"""<meta[^>]{0,200}?charset\s{0,9}=[\s"']{0,9}([a-z0-9_:.-]{1,40})""", re.IGNORECASE
)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# Python knows more codecs than pages use, some of them slow on purpose-made input (idna, punycode),
# and remembers every unknown name it was ever asked for. The names mean what they mean to browsers:
# https://encoding.spec.whatwg.org/#names-and-labels
_CODECS = {
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
_CHARSETS = {label: codec for codec, labels in _CODECS.items() for label in labels.split()}
_XML = re.compile(
    rb"""\A\s*<\?xml[^>]{0,100}?\sencoding\s{0,9}=\s{0,9}["']([a-z0-9_:.-]{1,40})""", re.IGNORECASE
)
LOOKED_AT = 2048  # bytes of a document that may say what its character set is
DEFAULT, FALLBACK = "utf-8", "cp1252"


def known(label: str | None) -> str | None:
    """Return Python's name of a character set; None for one that browsers do not know."""
    return _CHARSETS.get((label or "").strip().lower().replace("_", "-"))


def declared(content: bytes) -> str | None:
    """Return the codec that a document says it has, by its mark or its first 2 KiB."""
    for mark, codec in _BOMS:
        if content.startswith(mark):
            return codec
    for pattern in (_META, _XML):
        if match := pattern.search(content[:LOOKED_AT]):
            said = known(match[1].decode("ascii"))
            # It could not have been read in UTF-16.
            return "utf-8" if said and said.startswith("utf-16") else said
    return None


def decode(content: bytes, header: str | None = None) -> str:
    """Return the text of a document, of which the end may be missing.

    Args:
        content: the document.
        header: the character set that the response's header names.
    """
    has_mark = any(content.startswith(mark) for mark, _ in _BOMS)
    codec = (None if has_mark else known(header)) or declared(content)
    if codec is not None:
        return content.decode(codec, "replace")
    decoder = Decoder()
    return decoder.decode(content) + decoder.end()


class Decoder:
    """Decodes a document in pieces, of which the first one says the character set, if any does."""

    def __init__(self) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._is_guess = False
        self._is_ascii = True

    def decode(self, content: bytes) -> str:
        if self._decoder is None:
            codec = declared(content)
            self._is_guess = codec is None
            self._decoder = _decoder(codec or DEFAULT, "strict" if self._is_guess else "replace")
        if not self._is_guess:
            return self._decoder.decode(content)
        state = self._decoder.getstate()
        try:
            text = self._decoder.decode(content)
        except UnicodeDecodeError:
            self._is_guess = False
            # What was UTF-8 so far stays so, with a sign where it is broken.
            self._decoder = _decoder(FALLBACK if self._is_ascii else DEFAULT, "replace")
            return self._decoder.decode(state[0] + content)
        self._is_ascii = self._is_ascii and text.isascii()
        return text

    def end(self) -> str:
        """Return what the last bytes mean, if they are a character that was cut off."""
        if self._decoder is None:
            return ""
        if not self._is_guess:
            return self._decoder.decode(b"", final=True)
        return self._decoder.getstate()[0].decode(FALLBACK, "replace") if self._is_ascii else ""


def _decoder(codec: str, errors: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(codec)(errors)
