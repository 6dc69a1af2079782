"""Background jobs in PostgreSQL.

A `Task` is a kind of job. `enqueue` adds a job in the transaction of the change it belongs to, and
a `Schedule` enqueues one at certain times. The `Runner` runs the tasks and schedules that are
registered with it.
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
