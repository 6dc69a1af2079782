"""The usernames that `quart adopt` makes of those that are not valid here."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.adopt.plan import MIN_USERNAME_LENGTH, suggest_username
from app.user.forms import USERNAME_PATTERN
from app.user.models import USERNAME_LENGTH


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Zoë Doe", "Zoe-Doe"),
        (" ada ", "ada"),
        ("ada@example.com", "ada"),
        ("Ada.Lovelace@example.com", "Ada.Lovelace"),
        ("__init__", "init"),
        ("a b  c", "a-b-c"),
        ("x", "x-7"),
        ("", "user-7"),
        ("山田", "user-7"),
        ("a" * 40, "a" * 25),
        ("a" * 24 + "._b", "a" * 24),
        ("taken!", "taken-7"),
        ("TAKEN@example.com", "TAKEN-7"),
        ("twice!", "twice-7-2"),
        ("b" * 40, "b" * 23 + "-7"),
    ],
)
def test_suggested_username(old: str, new: str) -> None:
    taken = dict.fromkeys(("taken", "twice", "twice-7", "b" * 25), 1)
    assert suggest_username(old, 7, taken) == new


@given(st.text(max_size=60), st.integers(1, 2**63 - 1), st.booleans())
def test_suggested_username_is_valid_and_free(text: str, user_id: int, is_taken: bool) -> None:
    taken: dict[str, int] = {}
    first = suggest_username(text, user_id, taken)
    if is_taken:
        taken[first.lower()] = 1
    name = suggest_username(text, user_id, taken)
    assert name.lower() not in taken
    assert MIN_USERNAME_LENGTH <= len(name) <= USERNAME_LENGTH
    assert re.match(USERNAME_PATTERN, name)
