"""Checks of cron schedules."""

import re
from collections.abc import Iterator
from itertools import pairwise

from rehearsal.checks.context import Context
from rehearsal.checks.form import members
from rehearsal.configuration import REJECTED
from rehearsal.findings import Finding, Severity
from rehearsal.knowledge import MIN_CRON_MINUTES

FIELDS = {
    "minute": (0, 59),
    "hour": (0, 23),
    "day of the month": (1, 31),
    "month": (1, 12),
    "day of the week": (0, 7),
}
NAMES = {
    "month": "jan feb mar apr may jun jul aug sep oct nov dec",
    "day of the week": "sun mon tue wed thu fri sat",
}
PART = re.compile(r"(?:(\*|H(?:\(\d+-\d+\))?)|(\d+)(?:-(\d+))?)(?:/(\d+))?", re.ASCII)


class SpecError(ValueError):
    """A cron specification is invalid; the message says why."""


def check_commands(context: Context) -> Iterator[Finding]:
    for keys, cron in members(dict(context.configuration.raw), ("applications", "crons")):
        if isinstance(cron, dict) and not ("commands" in cron or "cmd" in cron):
            yield context.find(
                keys,
                "has no `commands`",
                REJECTED,
                "add `commands: {start: …}` with the command to run",
                Severity.ERROR,
            )


def check_specs(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        for name, cron in application.crons.items():
            place = (*keys, "crons", name, "spec")
            fix = "write five fields, such as `H/15 * * * *` to run every 15 minutes"
            try:
                shortest = interval(cron.spec)
            except SpecError as error:
                yield context.find(
                    place,
                    f"({cron.spec}) is not a valid cron specification: {error}",
                    REJECTED,
                    fix,
                    Severity.ERROR,
                )
                continue
            if shortest < MIN_CRON_MINUTES:
                yield context.find(
                    place,
                    f"({cron.spec}) has runs only {shortest} min apart",
                    f"the platform runs a cron at most every {MIN_CRON_MINUTES} minutes",
                    f"write `H/{MIN_CRON_MINUTES} * * * *` or run it less often; use a worker"
                    " for tasks that must run more often",
                )


def interval(spec: str) -> int:
    """Return the shortest interval between two runs, in minutes, at most 60.

    `H` is a number that the platform chooses, to spread the crons of many projects.

    Raises:
        SpecError: the specification is invalid.
    """
    words = spec.split()
    if len(words) != len(FIELDS):
        raise SpecError(f"expected 5 fields, got {len(words)}")
    values = {name: _field(name, word) for name, word in zip(FIELDS, words, strict=True)}
    minutes, hours = sorted(values["minute"]), values["hour"]
    gaps = [after - before for before, after in pairwise(minutes)]
    if any((hour + 1) % 24 in hours for hour in hours):
        gaps.append(minutes[0] + 60 - minutes[-1])
    return min(gaps, default=60)


def _field(name: str, text: str) -> set[int]:
    low, high = FIELDS[name]
    for number, word in enumerate(NAMES.get(name, "").split(), low):
        text = re.sub(rf"\b{word}\b", str(number), text, flags=re.IGNORECASE)
    found: set[int] = set()
    for part in text.split(","):
        match = PART.fullmatch(part)
        if match is None:
            raise SpecError(f"the {name} {part!r} is invalid")
        special, first, last, step = match.groups()
        if step is not None and int(step) == 0:
            raise SpecError(f"the {name} {part!r} has a step of 0")
        if special is not None:
            begin, end = low, high
            if special != "*" and step is None:
                end = low  # H alone is a single value, and it does not matter which
        else:
            begin = int(first)
            end = int(last) if last else high if step else begin
        if not low <= begin <= end <= high:
            raise SpecError(f"the {name} {part!r} is not between {low} and {high}")
        found |= set(range(begin, end + 1, int(step or 1)))
    return found
