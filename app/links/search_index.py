"""The search index: the `tsvector` column `links.search`.

The title has weight A, tags B, description C, URL D. A text can be replaced on its own, because
`ts_filter` keeps the lexemes of the other weights. The owner is a lexeme that occurs in no text, so
one GIN index finds the words of one user.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from sqlalchemy import ColumnElement, cast, func, literal_column
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import InstrumentedAttribute

from quart_upsun import search_words

# The URL has weight D and never changes.
WEIGHTS = {"title": "A", "tags": "B", "description": "C"}


def owner_lexeme(user_id: int) -> str:
    """Return the lexeme of the owner."""
    return f"@{user_id}"


def search_vector(
    user_id: int, *, url: str, title: str = "", tags: Sequence[str] = (), description: str = ""
) -> str:
    """Return the `tsvector` of a link as a string literal."""
    return f"'{owner_lexeme(user_id)}' " + search_words.tsvector(
        A=title, B=" ".join(tags), C=description, D=f"{url} {_decode_url(url)}"
    )


def _decode_url(url: str) -> str:
    """Return a URL as browsers show it: `b%C3%BCcher` and `xn--bcher-kva` become bücher."""
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
    """Return the SQL expression that replaces the lexemes of the given texts."""
    texts = {
        "title": title,
        "tags": None if tags is None else " ".join(tags),
        "description": description,
    }
    given = {WEIGHTS[name]: text for name, text in texts.items() if text is not None}
    new = cast(f"'{owner_lexeme(user_id)}' {search_words.tsvector(**given)}", TSVECTOR)
    # The owner's lexeme has no weight, so `ts_filter` drops it.
    kept = ",".join(weight for weight in "ABCD" if weight not in given)
    return new.op("||")(func.ts_filter(column, literal_column(f"'{{{kept}}}'")))
