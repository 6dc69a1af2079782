"""What a request or a job uses of the database: queries, their time, and the wait for the pool."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

QueryObserver: TypeAlias = Callable[[str, float, Any, BaseException | None], None]
"""Called after each statement, in the context of its caller, with the SQL, its duration in seconds,
its parameters, and the error if it failed. It must be fast, and must not raise."""


@dataclass(slots=True)
class DatabaseUse:
    """The statements of a request or a job, those of `direct()` included."""

    queries: int = 0
    """The number of statements, BEGIN and COMMIT included."""
    seconds: float = 0.0
    """The time of all statements. Statements that run at the same time count twice."""
    waited_seconds: float = 0.0
    """The time that was spent waiting for a pooled connection."""


current_use: ContextVar[DatabaseUse | None] = ContextVar("database_use", default=None)


def count_query(text: str, seconds: float, parameters: Any, error: BaseException | None) -> None:
    """Add a statement to the current request or job."""
    use = current_use.get()
    if use is not None:
        use.queries += 1
        use.seconds += seconds


def count_wait(seconds: float) -> None:
    """Add time that was spent waiting for a pooled connection."""
    use = current_use.get()
    if use is not None:
        use.waited_seconds += seconds
