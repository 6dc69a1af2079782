"""Tags, in the one form in which they are stored and compared."""

import re

from app.links.models import MAX_TAGS, TAG_LENGTH
from quart_upsun.text import MARKS, fold

TAG_SEPARATORS = re.compile(r"[\s,;#\u060c\u3001]+")
# Letters and numbers, the marks that belong to letters in Hindi, Thai or pointed Hebrew, and what
# joins letters in Persian. A tag begins and ends with something to be seen.
_LETTERS = f"\\w{MARKS}"
# What cannot be seen in a tag makes no other tag of it.
INVISIBLE_CHARACTERS = re.compile("[\u00ad\u034f\u200b\u200e\u200f\u2060\ufe00-\ufe0f]")
_JOINERS = "\u200c\u200d"
TAG_PATTERN = re.compile(
    rf"(?=.{{1,{TAG_LENGTH}}}\Z)[\w-](?:[{_LETTERS}{_JOINERS}-]*[{_LETTERS}-])?"
)
INVALID_TAG_CHARACTERS = re.compile(rf"[^{_LETTERS}{_JOINERS}\s-]+")


def parse_tags(text: str) -> list[str]:
    """Return the tags of a line: small letters, sorted, each once.

    Raises:
        ValueError: a sentence that says which is none.
    """
    found = set()
    for word in TAG_SEPARATORS.split(_fold_tag(text)):
        if not word:
            continue
        if not TAG_PATTERN.fullmatch(word):
            raise ValueError(
                "A tag consists of letters, digits, - and _,"
                f" and has at most {TAG_LENGTH} characters."
            )
        found.add(word)
    if len(found) > MAX_TAGS:
        raise ValueError(f"A link has at most {MAX_TAGS} tags.")
    return sorted(found)


def parse_tag(text: str) -> str:
    """Return a tag in the form that is kept.

    Raises:
        ValueError: it is none, or several.
    """
    found = parse_tags(text)
    if len(found) != 1:
        raise ValueError("Each tag is one word.")
    return found[0]


def tag_from_text(text: str) -> str | None:
    """Turn a folder name, or any other words, into a tag.

    Return None if nothing is left of it.
    """
    plain = _fold_tag(text[: 4 * TAG_LENGTH])  # a single character can turn into eighteen
    if TAG_PATTERN.fullmatch(plain):
        return plain
    # What is left may compose anew.
    tag = "-".join(_fold_tag(INVALID_TAG_CHARACTERS.sub("", plain)).split())[:TAG_LENGTH].strip(
        f"-{_JOINERS}"
    )
    return tag if TAG_PATTERN.fullmatch(tag) else None


def _fold_tag(text: str) -> str:
    """Return the form in which tags are compared."""
    return fold(INVISIBLE_CHARACTERS.sub("", text))
