"""Totals of requests, jobs and gauges of a process in a minute, which can be added up."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from quart_upsun.measure import JobMeasure, RequestMeasure
from quart_upsun.metrics.histogram import bucket_of, percentile

NO_ROUTE = "no route"
"""The route of requests that match none. Their paths are chosen by clients."""


@dataclass(slots=True)
class RequestTotals:
    """Totals of requests."""

    requests: int = 0
    errors: int = 0
    """Responses with a 5xx status."""
    seconds: float = 0.0
    queries: int = 0
    database_seconds: float = 0.0
    waited_seconds: float = 0.0
    """The time spent waiting for a pooled connection."""
    buckets: dict[int, int] = field(default_factory=dict)
    """The durations, by bucket of the histogram."""

    def count(self, measure: RequestMeasure) -> None:
        """Add a request."""
        seconds, database = measure.seconds, measure.database
        self.requests += 1
        self.errors += measure.is_error
        self.seconds += seconds
        if database.queries:
            self.queries += database.queries
            self.database_seconds += database.seconds
        self.waited_seconds += database.waited_seconds
        bucket = bucket_of(seconds)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def add(self, other: "RequestTotals") -> None:
        """Add the totals of other requests."""
        self.requests += other.requests
        self.errors += other.errors
        self.seconds += other.seconds
        self.queries += other.queries
        self.database_seconds += other.database_seconds
        self.waited_seconds += other.waited_seconds
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    def percentile(self, share: float) -> float | None:
        """Return a percentile of the durations, in seconds; None without requests."""
        return percentile(self.buckets, share)


@dataclass(slots=True)
class TaskTotals:
    """Totals of the attempts at jobs of a task."""

    attempts: int = 0
    retried: int = 0
    failed: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    """The time between due and start."""

    def count(self, measure: JobMeasure) -> None:
        """Add an attempt."""
        self.attempts += 1
        self.retried += measure.outcome == "retried"
        self.failed += measure.outcome == "failed"
        self.seconds += measure.seconds
        self.waited_seconds += measure.waited_seconds

    def add(self, other: "TaskTotals") -> None:
        """Add the totals of other attempts."""
        self.attempts += other.attempts
        self.retried += other.retried
        self.failed += other.failed
        self.seconds += other.seconds
        self.waited_seconds += other.waited_seconds


@dataclass(slots=True)
class Gauges:
    """States of a process: the maximum in a minute."""

    pool_size: int = 0
    pool_in_use: int = 0
    pool_waiting: int = 0
    """Callers that wait for a pooled connection."""
    memory_bytes: int = 0
    """Resident memory. Processes share some of it."""
    open_streams: int = 0
    loop_lag_seconds: float = 0.0
    """How late the event loop ran a timer."""
    queued_jobs: int = 0
    """Jobs of the whole database that are due."""
    oldest_job_seconds: float = 0.0
    """How long the oldest of them has been due."""

    def maximum(self, other: "Gauges") -> None:
        """Raise to the values of another moment."""
        for each in fields(self):
            setattr(self, each.name, max(getattr(self, each.name), getattr(other, each.name)))

    def add_process(self, other: "Gauges") -> None:
        """Add another process. The lag and the queue are those of the worst."""
        self.pool_size += other.pool_size
        self.pool_in_use += other.pool_in_use
        self.pool_waiting += other.pool_waiting
        self.memory_bytes += other.memory_bytes
        self.open_streams += other.open_streams
        self.loop_lag_seconds = max(self.loop_lag_seconds, other.loop_lag_seconds)
        self.queued_jobs = max(self.queued_jobs, other.queued_jobs)
        self.oldest_job_seconds = max(self.oldest_job_seconds, other.oldest_job_seconds)


@dataclass(slots=True)
class Totals:
    """All totals of a process and minute, or of several."""

    routes: dict[str, RequestTotals] = field(default_factory=dict)
    """By method and URL rule."""
    tasks: dict[str, TaskTotals] = field(default_factory=dict)
    """By name of the task."""
    streams: int = 0
    """Streams that have ended. They are in no histogram."""
    gauges: Gauges = field(default_factory=Gauges)

    def count_request(self, measure: RequestMeasure) -> None:
        """Add a request, or a stream that has ended."""
        if measure.is_stream and not measure.is_error:
            self.streams += 1
            return
        name = f"{measure.method} {measure.route or NO_ROUTE}"
        totals = self.routes.get(name)
        if totals is None:
            totals = self.routes[name] = RequestTotals()
        totals.count(measure)

    def count_job(self, measure: JobMeasure) -> None:
        """Add an attempt at a job."""
        self.tasks.setdefault(measure.task, TaskTotals()).count(measure)

    @property
    def requests(self) -> RequestTotals:
        """The totals of all routes."""
        all_routes = RequestTotals()
        for each in self.routes.values():
            all_routes.add(each)
        return all_routes

    def add_counts(self, other: "Totals") -> None:
        """Add the requests and jobs of others, without the gauges."""
        for name, requests in other.routes.items():
            self.routes.setdefault(name, RequestTotals()).add(requests)
        for name, attempts in other.tasks.items():
            self.tasks.setdefault(name, TaskTotals()).add(attempts)
        self.streams += other.streams


def totals_of_processes(parts: Iterable[Totals]) -> Totals:
    """Add up the totals of several processes in the same minute."""
    result = Totals()
    for part in parts:
        result.add_counts(part)
        result.gauges.add_process(part.gauges)
    return result


def totals_of_time(parts: Iterable[Totals]) -> Totals:
    """Add up the totals of several minutes. The gauges are the maximum."""
    result = Totals()
    for part in parts:
        result.add_counts(part)
        result.gauges.maximum(part.gauges)
    return result


def from_json(data: dict[str, Any]) -> Totals:
    """Return the totals that `dataclasses.asdict` and JSON have encoded."""
    return Totals(
        routes={
            name: RequestTotals(
                **{**each, "buckets": {int(key): n for key, n in each["buckets"].items()}}
            )
            for name, each in data["routes"].items()
        },
        tasks={name: TaskTotals(**each) for name, each in data["tasks"].items()},
        streams=data["streams"],
        gauges=Gauges(**data["gauges"]),
    )
