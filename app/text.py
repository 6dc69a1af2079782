"""Clean text that people or other sites send: one rule at every entrance.

Titles, descriptions and notes pass through `clean` before they are stored, whether they come from a
form, the API, an imported file or a fetched page.
"""

import re
import unicodedata

# Control characters, lone surrogates, and the bidirectional embeddings, overrides and isolates
# that can reorder the text beside them. Other invisible characters carry meaning: U+200C and U+200D
# join and separate letters in Persian and Hindi and build emoji, and tag characters build flags.
UNSAFE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)


def clean(text: str, limit: int | None = None) -> str:
    """Return text on one line, in Unicode's NFC, without characters that could mislead a reader.

    Args:
        text: what was sent.
        limit: cut the result to this many characters.
    """
    text = unicodedata.normalize("NFC", UNSAFE.sub("", text))
    return " ".join(text.split())[:limit].rstrip()
