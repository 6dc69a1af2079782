"""Sanitize and normalize Unicode text from users and other sites.

Call `clean` on every title, description and note before you store it, whether it comes from a form,
the API, an imported file or a fetched page.
"""

import re
import unicodedata
from typing import Literal

# Control characters, lone surrogates, bidirectional embeddings, overrides and isolates, which can
# reorder the surrounding text, and deprecated format characters. Other invisible characters carry
# meaning and are kept: U+200C and U+200D join and separate letters in Persian and Hindi and build
# emoji, U+200B separates words in Thai, U+200E and U+200F order punctuation in Hebrew.
UNSAFE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u180e\u202a-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
# Tag characters after a black flag encode a regional flag, such as Scotland's. Anywhere else they
# are hidden text.
FLAG_TAGS = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]{1,10}\U000e007f)|[\U000e0000-\U000e007f]"
)
# One variation selector chooses the form of a character. A sequence of them can hide data.
SELECTORS = re.compile(
    "([\ufe00-\ufe0f\U000e0100-\U000e01ef])[\ufe00-\ufe0f\U000e0100-\U000e01ef]+"
)


def _marks() -> str:
    """Return all combining marks, as ranges for a character class of a regular expression."""
    found: list[list[int]] = []
    for code in [*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)]:  # all marks are in here
        if unicodedata.category(chr(code))[0] == "M":
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in found)


MARKS = _marks()
# Normalization sorts the marks of a letter in quadratic time, so their number is limited to 30:
# https://www.unicode.org/reports/tr15/#Stream_Safe_Text_Format
_TOO_MANY_MARKS = re.compile(rf"([{MARKS}]{{30}})[{MARKS}]+")
# Unicode categories that are invisible on their own, and letters that look blank.
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Mc", "Me", "Mn", "Zl", "Zp", "Zs"})
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def clean_lines(text: str, limit: int | None = None) -> str:
    """Clean multi-line text: each line as with `clean`, at most one blank line in a row.

    Args:
        text: the text to clean.
        limit: the maximum length of the result, in characters. Longer text is cut off.
    """
    lines = "\n".join(clean(line) for line in text.splitlines()).strip("\n")
    lines = re.sub("\n{3,}", "\n\n", lines)[:limit]
    return _visible(FLAG_TAGS.sub(r"\1", lines).rstrip())


def clean(text: str, limit: int | None = None) -> str:
    """Clean a line of text: NFC, single spaces, no characters that could mislead a reader.

    Args:
        text: the text to clean. Line breaks become spaces.
        limit: the maximum length of the result, in characters. Longer text is cut off.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())[:limit].rstrip()
    text = SELECTORS.sub(r"\1", FLAG_TAGS.sub(r"\1", UNSAFE.sub("", text)))
    text = " ".join(normalize(text, "NFC").split())[:limit]
    return _visible(FLAG_TAGS.sub(r"\1", text).rstrip())  # the cut may have split a flag


def normalize(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """Normalize text to a Unicode form, with at most 30 combining marks per letter."""
    return unicodedata.normalize(form, _TOO_MANY_MARKS.sub(r"\1", text))


def fold(text: str) -> str:
    """Fold text for caseless comparison of words and tags: NFKC and `str.casefold`."""
    # Case folding turns a capital I with a dot above into an i and a combining mark.
    small = re.sub("i\u0307+", "i", normalize(text, "NFKC").casefold())
    return normalize(small, "NFKC")


def _visible(text: str) -> str:
    """Return the text, or an empty string if it has no visible character."""
    shows = (unicodedata.category(each) not in INVISIBLE and each not in BLANK for each in text)
    return text if any(shows) else ""
