"""The part of a program's output that explains why it failed."""

import re

LINES = 12
CONTEXT_LINES = 2  # before the first line that names an error
GAP_LINES = 8  # between two lines that belong to the same error
MAX_LINE_LENGTH = 500

TRACEBACK = "Traceback (most recent call last)"
ERROR = re.compile(
    r"^\W*((error|fatal|failed|panic|npm error)\b|E:|npm ERR!)|\b\w*(Error|Exception)\b:?"
    r"|: (not found|command not found|No such file or directory|Permission denied)\b"
    r"|Read-only file system|Segmentation fault|^Killed\b|syntax error|\berror:",
    re.IGNORECASE,
)
# A line that is an error by itself, such as those of pip, npm and Git.
MESSAGE = re.compile(r"^((error|fatal|E):|npm (error|ERR!)) ", re.IGNORECASE)
MAX_EARLIER = 3
# Gunicorn serves without its control socket, for which it has no writable directory.
HARMLESS = re.compile(r"Control server error")


def cause(output: str) -> str:
    """Return the last traceback of an output, else the lines around its last error, else its end.

    What a server prints while it shuts down often follows the cause, so the end of an output alone
    does not explain a failure. A traceback in turn often follows from errors of earlier commands,
    such as a failed `pip install`, so these come first.
    """
    lines = output.rstrip().splitlines()
    begin = next((n for n in reversed(range(len(lines))) if TRACEBACK in lines[n]), None)
    if begin is not None:
        earlier = dict.fromkeys(line for line in lines[:begin] if MESSAGE.match(line))
        kept = [line[:MAX_LINE_LENGTH] for line in list(earlier)[-MAX_EARLIER:]]
        return "\n".join([*kept, located(lines, begin, traceback(lines[begin:]))])
    numbers = [n for n, line in enumerate(lines) if ERROR.search(line)]
    if not numbers:
        return located(lines, max(0, len(lines) - LINES), lines[-LINES:])
    first = last = numbers[-1]
    for number in reversed(numbers):
        if first - number <= GAP_LINES and last - number < LINES - CONTEXT_LINES:
            first = number
    begin = max(0, first - CONTEXT_LINES)
    return located(lines, begin, lines[begin : begin + LINES])


def names_error(output: str) -> bool:
    """Return whether an output has a line that looks like an error."""
    return any(
        (TRACEBACK in line or ERROR.search(line)) and not HARMLESS.search(line)
        for line in output.splitlines()
    )


def traceback(lines: list[str]) -> list[str]:
    """Return the start and the end of a log entry, because a traceback's end says the most."""
    indented = next((n for n, line in enumerate(lines[1:], 1) if not line.startswith(" ")), None)
    kept = lines if indented is None else lines[: indented + 1]
    return [*kept[:3], "  …", *kept[4 - LINES :]] if len(kept) > LINES else kept


def located(lines: list[str], begin: int, kept: list[str]) -> str:
    """Return lines as text, with the number of the first one if others precede or follow them."""
    text = [line[:MAX_LINE_LENGTH] for line in kept]
    if len(kept) < len(lines):
        text.insert(0, f"(from line {begin + 1} of {len(lines)})")
    return "\n".join(text)
