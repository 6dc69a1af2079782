"""The state of this process, for metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quart_upsun.database import Database
from quart_upsun.database.replica import Replica
from quart_upsun.metrics.collector import Collector, resident_memory

if TYPE_CHECKING:
    from quart_upsun.extension import ToolkitState

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Of the buckets of durations, in seconds, as the semantic conventions advise."""


@dataclass(frozen=True)
class Gauge:
    """A value that goes up and down."""

    name: str
    unit: str
    description: str
    read: Callable[[], float]
    """Called from another thread."""
    attributes: Mapping[str, str] = field(default_factory=dict)


def gauges(state: "ToolkitState") -> list[Gauge]:
    """Return the gauges of a process."""
    database, live, jobs = state.database, state.live, state.jobs
    connections = "Connections of the pool."
    replica = database.replica
    return [
        *(
            Gauge(
                "db.client.connection.count",
                "{connection}",
                connections,
                read,
                {"db.client.connection.state": name},
            )
            for name, read in (("used", _used(database)), ("idle", _idle(database)))
        ),
        Gauge(
            "db.client.connection.pending_requests",
            "{request}",
            "Callers that wait for a connection of the pool.",
            lambda: database.waiting,
        ),
        Gauge("process.memory.usage", "By", "Resident memory of the process.", resident_memory),
        Gauge("quart_upsun.streams", "{stream}", "Open event streams.", lambda: len(live)),
        Gauge("quart_upsun.jobs.running", "{job}", "Running jobs.", lambda: jobs.running_count),
        *(() if replica is None else _replicated(replica)),
        *(
            gauge
            for each in state.observers
            if isinstance(each, Collector)
            for gauge in _collected(each)
        ),
    ]


def _collected(collector: Collector) -> list[Gauge]:
    """Return the gauges of the collector, which runs unless `METRICS` is off."""
    return [
        Gauge(
            "quart_upsun.event_loop.lag",
            "s",
            "How late the event loop ran a timer.",
            lambda: collector.lag_seconds,
        ),
        Gauge(
            "quart_upsun.jobs.due",
            "{job}",
            "Jobs of all processes that are due.",
            lambda: collector.queue.queued_jobs,
        ),
        Gauge(
            "quart_upsun.jobs.oldest",
            "s",
            "How long the oldest of them has been due.",
            lambda: collector.queue.oldest_job_seconds,
        ),
    ]


def _replicated(replica: Replica) -> list[Gauge]:
    """Return the gauges of the read replica."""
    reads, server = "quart_upsun.replica.reads", "quart_upsun.server"
    description = "Reads since the start that the replica may serve, by the server that did."
    return [
        Gauge(reads, "{read}", description, lambda: replica.served_count, {server: "replica"}),
        Gauge(reads, "{read}", description, lambda: replica.refused_count, {server: "primary"}),
    ]


def _used(database: Database) -> Callable[[], float]:
    return lambda: float(database.engine.pool.checkedout())  # type: ignore[attr-defined]


def _idle(database: Database) -> Callable[[], float]:
    return lambda: float(database.engine.pool.checkedin())  # type: ignore[attr-defined]
