"""The time limit of a job, which pauses while the job waits in a queue of this process."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

time_limit: ContextVar[asyncio.Timeout | None] = ContextVar("time_limit", default=None)
"""The limit of the job that runs in this context."""


@contextmanager
def pause_time_limit() -> Iterator[None]:
    """Pause the current job's time limit, if there is one.

    For waits that only this process causes, such as for a pooled connection: under load they would
    make every job time out, and none of them would be at fault.
    """
    limit = time_limit.get()
    deadline = None if limit is None or limit.expired() else limit.when()
    if limit is None or deadline is None:  # no job, or paused already
        yield
        return
    loop = asyncio.get_running_loop()
    left = deadline - loop.time()
    # RuntimeError: the job is over, and this is a task that it has left behind.
    with suppress(RuntimeError):
        limit.reschedule(None)
    try:
        yield
    finally:
        with suppress(RuntimeError):
            limit.reschedule(loop.time() + left)
