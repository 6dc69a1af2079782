"""Time limits of the shutdown, and of jobs. The latter pause while a job waits for this process."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

time_limit: ContextVar[asyncio.Timeout | None] = ContextVar("time_limit", default=None)
"""The time limit of the job in this context."""

EXIT_MARGIN_SECONDS = 0.5  # for the last steps of the shutdown


def shutdown_limit(seconds: float) -> float:
    """Return the time limit of a step of the shutdown: `seconds`, or less near its end.

    The process exits when the timer of `server/signals.py` ends, without the remaining steps.
    """
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    return max(0.0, min(seconds, left - EXIT_MARGIN_SECONDS)) if left else seconds


@contextmanager
def pause_time_limit() -> Iterator[None]:
    """Pause the time limit of the current job, if there is one.

    Use it around waits that only this process causes, such as for a pooled connection. Under load
    these would make jobs time out that are not slow themselves.
    """
    limit = time_limit.get()
    deadline = None if limit is None or limit.expired() else limit.when()
    if limit is None or deadline is None:  # not in a job, or already paused
        yield
        return
    loop = asyncio.get_running_loop()
    left = deadline - loop.time()
    # RuntimeError: the job has ended, and this runs in a task that it has started.
    with suppress(RuntimeError):
        limit.reschedule(None)
    try:
        yield
    finally:
        with suppress(RuntimeError):
            limit.reschedule(loop.time() + left)
