"""What the operations page shows of the metrics."""

from datetime import datetime
from typing import NamedTuple

from quart_upsun.metrics.charts import Chart, Number, lines, number
from quart_upsun.metrics.series import Span
from quart_upsun.metrics.totals import RequestTotals, Totals

MAX_ROUTES = 15


class Figure(NamedTuple):
    """A number at the top of the page."""

    label: str
    value: str


class Route(NamedTuple):
    """A row of the table of routes."""

    name: str
    totals: RequestTotals


def figures(span: Span) -> list[Figure]:
    """Return the main numbers: requests of the whole span, and states of the last step."""
    requests = span.total.requests
    newest = span.newest or Totals()
    gauges = newest.gauges
    return [
        Figure("Requests", f"{requests.requests:,}"),
        Figure("Errors (5xx)", f"{percent(requests.errors, requests.requests)}"),
        Figure("95th percentile", f"{number(milliseconds(requests.percentile(0.95)))} ms"),
        Figure("Processes", str(span.processes)),
        Figure("Pool", f"{gauges.pool_in_use} of {gauges.pool_size} in use"),
        Figure("Jobs due", f"{gauges.queued_jobs:,}"),
        Figure("Oldest job due", f"{gauges.oldest_job_seconds:,.0f} s"),
        Figure("Failed jobs", f"{sum(each.failed for each in span.total.tasks.values()):,}"),
    ]


def slowest_routes(total: Totals) -> list[Route]:
    """Return the routes with the largest 95th percentile, the slowest first."""
    found = sorted(
        (Route(name, each) for name, each in total.routes.items()),
        key=lambda route: route.totals.percentile(0.95) or 0,
        reverse=True,
    )
    return found[:MAX_ROUTES]


def charts(span: Span) -> list[Chart]:
    """Return the charts of the page."""
    minutes = span.step.total_seconds() / 60

    def chart(key: str, title: str, unit: str, *series: tuple[str, Number]) -> Chart:
        return Chart(key, title, unit, span, lines(span, *series))

    return [
        chart(
            "requests",
            "Requests",
            "per minute",
            ("Requests", lambda totals: totals.requests.requests / minutes),
            ("Streams ended", lambda totals: totals.streams / minutes),
        ),
        chart(
            "errors",
            "Error rate",
            "% of requests",
            (
                "5xx",
                lambda totals: 100 * totals.requests.errors / max(1, totals.requests.requests),
            ),
        ),
        chart(
            "latency",
            "Response time",
            "ms",
            ("50th percentile", lambda totals: milliseconds(totals.requests.percentile(0.5))),
            ("95th percentile", lambda totals: milliseconds(totals.requests.percentile(0.95))),
            ("99th percentile", lambda totals: milliseconds(totals.requests.percentile(0.99))),
        ),
        chart(
            "database",
            "Database time",
            "ms per request",
            ("Statements", lambda totals: mean(totals.requests, "database_seconds")),
            ("Waiting for a connection", lambda totals: mean(totals.requests, "waited_seconds")),
        ),
        chart(
            "pool",
            "Connection pool",
            "connections",
            ("In use", lambda totals: totals.gauges.pool_in_use),
            ("Callers waiting", lambda totals: totals.gauges.pool_waiting),
            ("Size", lambda totals: totals.gauges.pool_size),
        ),
        chart(
            "lag",
            "Event loop lag",
            "ms",
            ("Lag", lambda totals: milliseconds(totals.gauges.loop_lag_seconds)),
        ),
        chart(
            "memory",
            "Memory",
            "MB",
            ("Resident", lambda totals: totals.gauges.memory_bytes / 1_000_000),
        ),
        chart(
            "streams",
            "Open event streams",
            "streams",
            ("Open", lambda totals: totals.gauges.open_streams),
        ),
        chart(
            "queue",
            "Job queue",
            "jobs due",
            ("Due", lambda totals: totals.gauges.queued_jobs),
        ),
        chart(
            "age",
            "Oldest job",
            "seconds since due",
            ("Age", lambda totals: totals.gauges.oldest_job_seconds),
        ),
        chart(
            "failures",
            "Failed jobs",
            "per minute",
            (
                "Attempts",
                lambda totals: sum(each.retried for each in totals.tasks.values()) / minutes,
            ),
            (
                "Permanently",
                lambda totals: sum(each.failed for each in totals.tasks.values()) / minutes,
            ),
        ),
    ]


def format_minute(at: datetime) -> str:
    """Format the start of a minute."""
    return at.strftime("%H:%M")


def format_hour(at: datetime) -> str:
    """Format the start of an hour."""
    return at.strftime("%d %b %H:00")


def format_day(at: datetime) -> str:
    """Format a day, for the time axis of two weeks."""
    return at.strftime("%d %b")


def milliseconds(seconds: float | None) -> float | None:
    """Convert a duration."""
    return None if seconds is None else 1000 * seconds


def mean(totals: RequestTotals, name: str) -> float | None:
    """Return a total of requests in milliseconds per request; None without requests."""
    return 1000 * float(getattr(totals, name)) / totals.requests if totals.requests else None


def percent(part: int, whole: int) -> str:
    """Format a share."""
    return f"{100 * part / whole:.2f}%" if whole else "-"
