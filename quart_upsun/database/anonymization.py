"""Rules that say how `quart sanitize` anonymizes each column of a preview's data.

Each model lists the rules of its columns in `__sanitize__`. A test fails for a column without one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ColumnRule:
    """How a column is anonymized."""

    kind: str
    """`kept`, `replaced` or `ended`."""
    expression: str | None = None
    """The new value, as an SQL expression over the columns of the row."""


KEPT = ColumnRule("kept")
"""The column holds no personal data and keeps its values."""

EMPTIED = "emptied"
"""For `__sanitize__` itself: delete all rows of the table."""

EMPTIED_SCHEMAS: set[str] = set()
"""Schemas whose tables are all emptied, beside the application's own. A `models.py` adds to it."""

Rules = dict[str, ColumnRule] | str


def replaced(expression: str) -> ColumnRule:
    """Replace personal data with a made-up value."""
    return ColumnRule("replaced", expression)


def ended(expression: str) -> ColumnRule:
    """Invalidate a credential, such as a password hash or a token."""
    return ColumnRule("ended", expression)
