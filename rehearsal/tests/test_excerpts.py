"""Excerpts of logs show the cause of a failure, wherever it is."""

import pytest

from rehearsal.excerpts import LINES, cause, names_error

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


def test_errors_of_earlier_commands_come_before_a_traceback() -> None:
    missing = "ERROR: No matching distribution found for Flask==9"
    text = cause("\n".join(["error: a", "error: b", "error: c", missing, *NOISE, *TRACEBACK]))
    lines = text.splitlines()
    assert lines[:4] == ["error: b", "error: c", missing, "(from line 45 of 66)"]
    assert lines[-1] == TRACEBACK[-1]


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


def test_lines_that_are_errors() -> None:
    assert names_error("started\nOSError: no space")
    assert not names_error("started\nlistening")
    assert not names_error("[ERROR] Control server error: [Errno 30] Read-only file system: '.'")
