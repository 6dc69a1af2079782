"""PgQueuer 1.6: what its own front, `pgqueuer.PgQueuer`, is made of.

That front has a driver that does not connect again, says how a job ended by the job's id alone, and
gives a job up when its process stops. `quart_upsun.jobs` puts the same parts together differently;
docs/decisions/jobs.md says what remains of the library.
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

# What `jobs.queries` overrides, and the parameters: how an attempt ended is written down only for
# who still has the job.
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
    """Return the channel on which workers listen."""
    return db_settings().channel


def change_notice() -> str:
    """Return the notice that makes workers look into the queue.

    The trigger of the table sends it for an INSERT, and says nothing of an UPDATE.
    """
    return TableChangedEvent(
        channel=Channel(channel()),
        sent_at=utc_now(),
        type="table_changed_event",
        operation="insert",
        table="pgqueuer",
    ).model_dump_json()
