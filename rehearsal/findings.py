"""Findings of a rehearsal, and the verdict that follows from them."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Severity(StrEnum):
    """The severity of a finding."""

    ERROR = "error"  # the deploy or requests fail
    NOT_REHEARSED = "not-rehearsed"  # cannot be rehearsed on this machine or by this version
    WARNING = "warning"  # the deploy works, but should be improved; an error with --strict
    NOTE = "note"  # information

    @property
    def label(self) -> str:
        return self.value.replace("-", " ")

    @property
    def rank(self) -> int:
        """Return its position, with the most serious one first."""
        return list(Severity).index(self)


class Verdict(StrEnum):
    """The result of a rehearsal."""

    SUCCEEDS = "succeeds"
    FAILS = "fails"
    NOT_REHEARSED = "not-rehearsed"
    """Nothing failed, but a part of the deploy could not be rehearsed."""

    @property
    def exit_code(self) -> int:
        return {Verdict.SUCCEEDS: 0, Verdict.FAILS: 1, Verdict.NOT_REHEARSED: 2}[self]


class Place(NamedTuple):
    """A line of a file."""

    file: str = ""
    """The path relative to the root of the repository; "" if there is none."""
    line: int = 0
    """Counted from 1; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, or one thing that could not be rehearsed."""

    stage: str
    """The stage of the lifecycle in which it was found, such as `validate` or `deploy`."""
    message: str
    """What is wrong, as one sentence."""
    consequence: str = ""
    """What the platform would do, or what a visitor would see."""
    fix: str = ""
    """How to fix it, or how to make it possible to rehearse it."""
    severity: Severity = Severity.ERROR
    file: str = ""
    """The path of the file, relative to the root of the repository; empty if there is none."""
    line: int = 0
    """The line in `file`, counted from 1; 0 if unknown."""
    excerpt: str = ""
    """Related lines of output."""

    @property
    def place(self) -> str:
        """Return `file:line`, a form that editors can open."""
        return f"{self.file}:{self.line}" if self.line else self.file


def verdict(findings: Iterable[Finding], *, strict: bool = False) -> Verdict:
    """Return the verdict; `strict` treats warnings as errors."""
    found = {finding.severity for finding in findings}
    if Severity.ERROR in found or (strict and Severity.WARNING in found):
        return Verdict.FAILS
    return Verdict.NOT_REHEARSED if Severity.NOT_REHEARSED in found else Verdict.SUCCEEDS


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if necessary."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
