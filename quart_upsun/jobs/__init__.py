"""Background jobs in PostgreSQL.

A `Task` is a kind of job, and `enqueue` adds one in the transaction it belongs to. `Schedule` runs
a task at certain times. `Runner` does the work; register tasks and schedules with it.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.jobs.queue import (
        JobContext,
        JobError,
        JobPostponedError,
        JobTakenOverError,
        PermanentJobError,
        Schedule,
        Task,
        enqueue,
        enqueue_many,
    )
    from quart_upsun.jobs.runner import Runner

__all__ = [
    "JobContext",
    "JobError",
    "JobPostponedError",
    "JobTakenOverError",
    "PermanentJobError",
    "Runner",
    "Schedule",
    "Task",
    "enqueue",
    "enqueue_many",
]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("queue", "runner"))
