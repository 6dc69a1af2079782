"""What happens to each column when production's data reaches a preview.

Said beside the columns, in `__sanitize__` of their model; a test fails for one that is not there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ColumnRule:
    """What happens to a column."""

    kind: str
    """`kept`, `replaced` or `ended`."""
    expression: str | None = None
    """The new value: SQL, in which the row's columns can be named."""


KEPT = ColumnRule("kept")
"""Tells nothing about anybody."""

EMPTIED = "emptied"
"""For a whole table: none of its rows stays."""

Rules = dict[str, ColumnRule] | str


def replaced(expression: str) -> ColumnRule:
    """Put a made-up value in the place of one about a person."""
    return ColumnRule("replaced", expression)


def ended(expression: str) -> ColumnRule:
    """Make what opens a door worthless."""
    return ColumnRule("ended", expression)
