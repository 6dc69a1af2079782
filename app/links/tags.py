"""Normalize and validate tags."""

import re

from app.links.models import MAX_TAGS, TAG_LENGTH
from quart_upsun.text import MARKS, fold

TAG_SEPARATORS = re.compile(r"[\s,;#\u060c\u3001]+")
# Punctuation that is part of words in some scripts: the middle dots of Catalan and Japanese, the
# hyphen of Armenian, geresh and gershayim of Hebrew, and the tsheg of Tibetan
# (https://www.unicode.org/reports/tr31/#Specific_Character_Adjustments).
_WORD_PUNCTUATION = "\u00b7\u058a\u05f3\u05f4\u0f0b\u30fb"
# Letters and digits, combining marks (Hindi, Thai, pointed Hebrew), and the joiners of Persian. A
# tag begins and ends with a visible character.
_LETTERS = f"\\w{MARKS}{_WORD_PUNCTUATION}"
# Removed, so that two tags that look the same are the same.
INVISIBLE_CHARACTERS = re.compile("[\u00ad\u034f\u200b\u200e\u200f\u2060\ufe00-\ufe0f]")
_JOINERS = "\u200c\u200d"
TAG_PATTERN = re.compile(
    rf"(?=.{{1,{TAG_LENGTH}}}\Z)[\w-](?:[{_LETTERS}{_JOINERS}-]*[{_LETTERS}-])?"
)
INVALID_TAG_CHARACTERS = re.compile(rf"[^{_LETTERS}{_JOINERS}\s-]+")


def parse_tags(text: str) -> list[str]:
    """Parse tags from text: lower case, sorted, without duplicates.

    Raises:
        ValueError: a tag is invalid, or there are too many; the message is for the user.
    """
    found = set()
    for word in TAG_SEPARATORS.split(fold_tag(text)):
        if not word:
            continue
        if not TAG_PATTERN.fullmatch(word):
            raise ValueError(
                "Tags may contain only letters, digits, - and _,"
                f" and have at most {TAG_LENGTH} characters."
            )
        found.add(word)
    if len(found) > MAX_TAGS:
        raise ValueError(f"Use at most {MAX_TAGS} tags per link.")
    return sorted(found)


def parse_tag(text: str) -> str:
    """Parse a single tag.

    Raises:
        ValueError: the text is not exactly one valid tag; the message is for the user.
    """
    found = parse_tags(text)
    if len(found) != 1:
        raise ValueError("A tag must be a single word.")
    return found[0]


def tag_from_text(text: str) -> str | None:
    """Convert any text, such as a folder name, to a tag.

    Returns None if it has no characters that a tag may contain.
    """
    plain = fold_tag(text[: 4 * TAG_LENGTH])  # NFKC expands one character to up to 18
    if TAG_PATTERN.fullmatch(plain):
        return plain
    # Removing characters may let others compose, so fold again.
    tag = "-".join(fold_tag(INVALID_TAG_CHARACTERS.sub("", plain)).split())[:TAG_LENGTH].strip(
        f"-{_JOINERS}{_WORD_PUNCTUATION}"
    )
    return tag if TAG_PATTERN.fullmatch(tag) else None


def fold_tag(text: str) -> str:
    """Return the normalized form in which tags are compared."""
    # NFKC turns the non-breaking hyphen into U+2010, which looks like the hyphen of the keyboard.
    return fold(INVISIBLE_CHARACTERS.sub("", text)).replace("\u2010", "-")
