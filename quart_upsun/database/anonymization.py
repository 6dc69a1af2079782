"""What happens to each column when production's data reaches a preview.

Said beside the columns, in `__sanitize__` of their model; a test fails for one that is not there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """What happens to a column."""

    kind: str
    """`kept`, `replaced` or `ended`."""
    expression: str | None = None
    """The new value: SQL, in which the row's columns can be named."""


KEPT = Rule("kept")
"""Tells nothing about anybody."""

EMPTIED = "emptied"
"""For a whole table: none of its rows stays."""

Rules = dict[str, Rule] | str


def replaced(expression: str) -> Rule:
    """Put a made-up value in the place of one about a person."""
    return Rule("replaced", expression)


def ended(expression: str) -> Rule:
    """Make what opens a door worthless."""
    return Rule("ended", expression)
