"""Excerpts of logs show the cause of a failure, wherever it is."""

import pytest

from rehearsal.excerpts import LINES, cause

NOISE = [f"step {number}" for number in range(40)]
TRACEBACK = [
    "Traceback (most recent call last):",
    *(f'  File "module{n}.py", line {n}, in f{n}' for n in range(20)),
    "ModuleNotFoundError: No module named 'flask'",
]


def test_traceback_in_the_middle() -> None:
    shutdown = ["Worker exiting", "Shutting down: Master", "Reason: Worker failed to boot."] * 5
    text = cause("\n".join([*NOISE, *TRACEBACK, *shutdown]))
    lines = text.splitlines()
    assert lines[0] == "(from line 41 of 77)"
    assert lines[1] == TRACEBACK[0]
    assert lines[-1] == TRACEBACK[-1]
    assert len(lines) <= LINES + 1


@pytest.mark.parametrize(
    "line",
    [
        "ERROR: Could not find a version that satisfies the requirement nothing",
        "sh: 3: gunicorn: not found",
        "npm ERR! missing script: build",
        "django.db.utils.OperationalError: could not connect",
        "cp: cannot create regular file 'a': Read-only file system",
    ],
)
def test_error_before_other_output(line: str) -> None:
    text = cause("\n".join([*NOISE, line, "more about it", *NOISE]))
    lines = text.splitlines()
    assert lines[1:5] == ["step 38", "step 39", line, "more about it"]


def test_last_of_several_errors() -> None:
    text = cause("\n".join(["error: first", *NOISE, "error: second", "error: third", *NOISE]))
    assert "first" not in text
    assert "second" in text
    assert "third" in text


def test_output_without_an_error_is_cut_at_the_start() -> None:
    assert cause("a\nb\n") == "a\nb"
    assert cause("\n".join(NOISE)).splitlines()[-1] == "step 39"
    assert cause("") == ""
