"""Clean text that people or other sites send: one rule at every entrance.

Titles, descriptions and notes pass through `clean` before they are stored, whether they come from a
form, the API, an imported file or a fetched page.
"""

import re
import unicodedata

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

INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})  # Unicode's categories


def clean_lines(text: str, limit: int | None = None) -> str:
    """Return text of several lines: each as `clean` returns it, never two empty ones in a row.

    Args:
        text: what was sent.
        limit: cut the result to this many characters.
    """
    lines = "\n".join(clean(line) for line in text.splitlines()).strip("\n")
    return _visible(re.sub("\n{3,}", "\n\n", lines)[:limit].rstrip())


def clean(text: str, limit: int | None = None) -> str:
    """Return text on one line, in Unicode's NFC, without characters that could mislead a reader.

    Args:
        text: what was sent.
        limit: cut the result to this many characters.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())[:limit].rstrip()
    text = FLAG_TAGS.sub(r"\1", UNSAFE.sub("", text))
    return _visible(" ".join(unicodedata.normalize("NFC", text).split())[:limit].rstrip())


def _visible(text: str) -> str:
    """Return the text, empty if there is nothing to be seen in it."""
    return text if any(unicodedata.category(each) not in INVISIBLE for each in text) else ""
