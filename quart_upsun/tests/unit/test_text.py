"""Sanitizing and normalizing text."""
# ruff: noqa: RUF001 - the texts use other scripts on purpose

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_upsun.text import clean, clean_lines

SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",
        "👨\u200d👩\u200d👧",
        "❤\ufe0f",
        SCOTLAND,
        "क्\u200dष",
        "שלום\u200f!",
        "Straße",
        "ไทย\u200bไทย",
    ],
)
def test_clean_keeps_meaningful_characters(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\u202egpj.exe", "agpj.exe"),
        ("\u2066a\u2069", "a"),
        ("a\x00b\x1bc\x9bd", "abcd"),
        ("\ufeffa", "a"),
        ("hidden\U000e0068\U000e0069", "hidden"),
        (f"{SCOTLAND}\U000e0068", SCOTLAND),
        ("e\u0301", "é"),
        (" a \n\t b ", "a b"),
        ("a\u2028b\u00a0c", "a b c"),
        ("\ud800", ""),
        ("\u200b\u200d ", ""),
        ("😀\U000e0158\U000e0155\U000e0162", "😀\U000e0158"),
        ("\u3164", ""),
        ("\u2800\u0301\ufe0f", ""),
        ("", ""),
    ],
)
def test_clean_removes_misleading_characters(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_clean_does_not_split_flags() -> None:
    assert clean("x" * 98 + SCOTLAND, 100) == "x" * 98 + SCOTLAND[0]
    assert clean_lines("x" * 98 + SCOTLAND, 100) == "x" * 98 + SCOTLAND[0]


def test_clean_lines_keeps_line_breaks() -> None:
    assert clean_lines(" one \r\n\n\n\n two\u202e\n") == "one\n\ntwo"


@given(st.text(), st.integers(1, 20))
def test_clean_is_idempotent(text: str, limit: int) -> None:
    for function in (clean, clean_lines):
        once = function(text)
        assert function(once) == once
        once = function(text, limit)
        assert len(once) <= limit
        assert function(once, limit) == once


def test_clean_takes_linear_time() -> None:
    """Normalization sorts combining marks, which could take hours for a hostile page."""

    def seconds(size: int) -> float:
        started = time.process_time()
        clean("a" + "\u0315\u0300" * size, 100)
        return time.process_time() - started

    # In quadratic time, 16 times the length would take 256 times as long.
    assert seconds(64 * 1024) < 0.1 + 60 * seconds(4 * 1024)
    assert len(clean("a" + "\u0315\u0300" * 1000)) <= 31
