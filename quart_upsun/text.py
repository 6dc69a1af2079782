"""Clean text that people or other sites send: one rule at every entrance.

Titles, descriptions and notes pass through `clean` before they are stored, whether they come from a
form, the API, an imported file or a fetched page.
"""

import re
import unicodedata
from typing import Literal

# Control characters, lone surrogates, and the bidirectional embeddings, overrides and isolates
# that can reorder the text beside them, with other deprecated format characters. What is invisible
# is not meaningless: U+200C and U+200D join and separate letters in Persian and Hindi and build
# emoji, U+200B separates words in Thai, U+200E and U+200F order punctuation in Hebrew.
UNSAFE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u180e\u202a-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
# Tag characters belong to a black flag, and make it that of Scotland, for instance. Elsewhere they
# are text that nobody sees.
FLAG_TAGS = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]{1,10}\U000e007f)|[\U000e0000-\U000e007f]"
)
# One variation selector chooses the form of a character; a run of them can hide data.
SELECTORS = re.compile(
    "([\ufe00-\ufe0f\U000e0100-\U000e01ef])[\ufe00-\ufe0f\U000e0100-\U000e01ef]+"
)


def _marks() -> str:
    """Return the characters that go with a letter, for the [ ] of a regular expression."""
    found: list[list[int]] = []
    for code in [*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)]:  # there are none elsewhere
        if unicodedata.category(chr(code))[0] == "M":
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in found)


MARKS = _marks()
# No language has that many for one letter. To sort them takes time that grows with their square.
# https://www.unicode.org/reports/tr15/#Stream_Safe_Text_Format
_TOO_MANY_MARKS = re.compile(rf"([{MARKS}]{{30}})[{MARKS}]+")
# Unicode's categories of what shows nothing by itself, and letters that are blank.
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Mc", "Me", "Mn", "Zl", "Zp", "Zs"})
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def clean_lines(text: str, limit: int | None = None) -> str:
    """Return text of several lines: each as `clean` returns it, never two empty ones in a row.

    Args:
        text: what was sent.
        limit: cut the result to this many characters.
    """
    lines = "\n".join(clean(line) for line in text.splitlines()).strip("\n")
    lines = re.sub("\n{3,}", "\n\n", lines)[:limit]
    return _visible(FLAG_TAGS.sub(r"\1", lines).rstrip())


def clean(text: str, limit: int | None = None) -> str:
    """Return text on one line, in Unicode's NFC, without characters that could mislead a reader.

    Args:
        text: what was sent.
        limit: cut the result to this many characters.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())[:limit].rstrip()
    text = SELECTORS.sub(r"\1", FLAG_TAGS.sub(r"\1", UNSAFE.sub("", text)))
    text = " ".join(normalize(text, "NFC").split())[:limit]
    return _visible(FLAG_TAGS.sub(r"\1", text).rstrip())  # the cut may have gone through a flag


def normalize(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """Return text in one of Unicode's forms, with at most 30 marks to a letter."""
    return unicodedata.normalize(form, _TOO_MANY_MARKS.sub(r"\1", text))


def fold(text: str) -> str:
    """Return text in the form in which words and tags are compared: NFKC, and without case."""
    # A capital I with a dot is an i and a mark once it is small.
    small = re.sub("i\u0307+", "i", normalize(text, "NFKC").casefold())
    return normalize(small, "NFKC")


def _visible(text: str) -> str:
    """Return the text, empty if there is nothing to be seen in it."""
    shows = (unicodedata.category(each) not in INVISIBLE and each not in BLANK for each in text)
    return text if any(shows) else ""
