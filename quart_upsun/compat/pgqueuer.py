"""Private APIs of PgQueuer 1.6: the components of `pgqueuer.PgQueuer`.

`PgQueuer` itself is not used, because its driver does not reconnect, it records the result of a job
by the job's id alone, and it fails a job when its process stops. `quart_upsun.jobs` combines the
same components differently; see docs/decisions/jobs.md.
"""

from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.core.executors import EntrypointExecutor, EntrypointExecutorParameters
from pgqueuer.core.qm import QueueManager
from pgqueuer.core.sm import SchedulerManager
from pgqueuer.core.tm import TaskManager
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job, Schedule, TableChangedEvent, TracebackRecord, utc_now
from pgqueuer.domain.settings import db_settings
from pgqueuer.domain.types import JOB_STATUS, Channel, QueueEntrypoint, QueueExecutionMode
from pgqueuer.ports.driver import Driver, NotifyCallback

__all__ = [
    "JOB_STATUS",
    "OVERRIDDEN",
    "Driver",
    "EntrypointExecutor",
    "EntrypointExecutorParameters",
    "Job",
    "NotifyCallback",
    "Queries",
    "QueueEntrypoint",
    "QueueExecutionMode",
    "QueueManager",
    "RetryRequested",
    "Schedule",
    "SchedulerManager",
    "TaskManager",
    "TracebackRecord",
    "change_notice",
    "channel",
]

# Methods that `jobs.pgqueuer_queries` overrides, and their parameters. The result of an attempt is
# recorded only by the worker that still holds the job.
OVERRIDDEN = {
    Queries.dequeue: (
        *("self", "batch_size", "entrypoints", "queue_manager_id"),
        *("global_concurrency_limit", "heartbeat_timeout"),
    ),
    Queries.log_jobs: ("self", "job_status"),
    Queries.retry_job: ("self", "job", "delay", "traceback_record"),
    Queries.queued_work: ("self", "entrypoints"),
}


def channel() -> str:
    """Return the NOTIFY channel that workers listen on."""
    return db_settings().channel


def change_notice() -> str:
    """Return the NOTIFY payload that makes workers check the queue.

    PgQueuer's trigger sends it after an INSERT, but not after an UPDATE.
    """
    return TableChangedEvent(
        channel=Channel(channel()),
        sent_at=utc_now(),
        type="table_changed_event",
        operation="insert",
        table="pgqueuer",
    ).model_dump_json()
