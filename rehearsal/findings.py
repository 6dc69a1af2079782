"""What a rehearsal finds, in the words of its report."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding counts."""

    ERROR = "error"  # the deploy fails, or users would see it fail; makes the exit code 1
    WARNING = "warning"  # works, but not as one would wish
    NOTE = "note"  # what this machine could not prove, and the like


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or could not be proven."""

    stage: str
    """The stage of the lifecycle in which it shows, such as `validate` or `deploy`."""
    message: str
    """What is wrong, as one sentence that begins with the place's name."""
    consequence: str = ""
    """What the platform, or a visitor, would do."""
    fix: str = ""
    """How to fix it."""
    severity: Severity = Severity.ERROR
    file: str = ""
    """The file it is about, from the root of the repository; empty where there is none."""
    line: int = 0
    """Its line in `file`, from 1; 0 where none is known."""
    excerpt: str = ""
    """Lines of output that belong to it."""

    @property
    def place(self) -> str:
        """Return `file:line`, as editors read it."""
        return f"{self.file}:{self.line}" if self.line else self.file
