"""Findings: errors, warnings and notes of a rehearsal."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """The severity of a finding."""

    ERROR = "error"  # the deploy or requests fail; the exit code is 1
    WARNING = "warning"  # the deploy works, but should be improved
    NOTE = "note"  # information, such as what could not be tested on this machine


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, or one thing that could not be tested."""

    stage: str
    """The stage of the lifecycle in which it was found, such as `validate` or `deploy`."""
    message: str
    """What is wrong, as one sentence."""
    consequence: str = ""
    """What the platform would do, or what a visitor would see."""
    fix: str = ""
    """How to fix it."""
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
