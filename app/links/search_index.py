"""What a search compares with: the column `links.search`, a `tsvector`.

Title has the weight A, tags B, description C, the address D. Each text is replaced without the
others: `ts_filter` keeps those. The owner is a lexeme that no text contains, so one index finds the
words of one user.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from sqlalchemy import ColumnElement, cast, func, literal_column
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import InstrumentedAttribute

from quart_upsun import search_words

# The address has the weight D: it never changes.
WEIGHTS = {"title": "A", "tags": "B", "description": "C"}


def owner_lexeme(user_id: int) -> str:
    """Return the lexeme that stands for the owner."""
    return f"@{user_id}"


def search_vector(
    user_id: int, *, url: str, title: str = "", tags: Sequence[str] = (), description: str = ""
) -> str:
    """Return the `tsvector` of a link as a literal."""
    return f"'{owner_lexeme(user_id)}' " + search_words.tsvector(
        A=title, B=" ".join(tags), C=description, D=f"{url} {_decode_url(url)}"
    )


def _decode_url(url: str) -> str:
    """Return an address as browsers show it: `b%C3%BCcher` and `xn--bcher-kva` are bücher."""
    scheme, _, rest = url.partition("://")
    host, slash, rest = rest.partition("/")
    with suppress(UnicodeError):
        host = host.encode("ascii").decode("idna")
    return f"{scheme}://{host}{slash}{unquote(rest)}"


def updated_search_vector(
    user_id: int,
    column: InstrumentedAttribute[str | None],
    *,
    title: str | None = None,
    tags: Sequence[str] | None = None,
    description: str | None = None,
) -> ColumnElement[Any]:
    """Return the expression that replaces the words of those texts that are given."""
    texts = {
        "title": title,
        "tags": None if tags is None else " ".join(tags),
        "description": description,
    }
    given = {WEIGHTS[name]: text for name, text in texts.items() if text is not None}
    new = cast(f"'{owner_lexeme(user_id)}' {search_words.tsvector(**given)}", TSVECTOR)
    # The owner has no weight, and is not among the words that are kept.
    kept = ",".join(weight for weight in "ABCD" if weight not in given)
    return new.op("||")(func.ts_filter(column, literal_column(f"'{{{kept}}}'")))
