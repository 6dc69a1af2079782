"""`/metrics` in Prometheus' text format, for scrapers with `METRICS_TOKEN`.

The numbers are those of the process that answers. The label `instance` names it, so that the series
of several processes stay apart.
https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

import hmac
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from quart import Blueprint, Quart, Response, current_app, request

from quart_upsun.current import current_toolkit
from quart_upsun.http.credentials import presented_tokens
from quart_upsun.measure import JobMeasure, Observer, RequestMeasure
from quart_upsun.policy import no_rate_limit, no_store, public
from quart_upsun.settings import Settings
from quart_upsun.telemetry.gauges import BOUNDS, gauges
from quart_upsun.telemetry.resources import process_attributes

blueprint = Blueprint("prometheus", __name__)

UNITS = {"By": "_bytes", "s": "_seconds"}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Durations by labels.

    Args:
        name: without the suffix `_seconds`.
        description: for people.
        labels: the names of the labels.
    """

    def __init__(self, name: str, description: str, labels: Sequence[str]) -> None:
        self.name, self.description, self.labels = f"{name}_seconds", description, labels
        self._buckets: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, seconds: float, *values: str) -> None:
        """Add a duration.

        Args:
            seconds: the duration.
            values: the values of the labels. There must be few of them in all.
        """
        buckets = self._buckets.setdefault(values, [0] * (len(BOUNDS) + 1))
        buckets[bisect_left(BOUNDS, seconds)] += 1
        self._sums[values] = self._sums.get(values, 0.0) + seconds

    def lines(self, common: Mapping[str, str]) -> Iterator[str]:
        """Yield the lines of the text format."""
        yield from _head(self.name, self.description, "histogram")
        for values, buckets in self._buckets.items():
            labels = {**common, **dict(zip(self.labels, values, strict=True))}
            for bound, count in zip([*BOUNDS, "+Inf"], accumulate(buckets), strict=True):
                yield f"{self.name}_bucket{_labels({**labels, 'le': str(bound)})} {count}"
            yield f"{self.name}_sum{_labels(labels)} {self._sums[values]}"
            yield f"{self.name}_count{_labels(labels)} {sum(buckets)}"


class Collector:
    """An observer that counts for Prometheus."""

    def __init__(self) -> None:
        self.requests = Histogram(
            "http_server_request_duration",
            "Duration of requests, without event streams.",
            ("http_request_method", "http_route", "http_response_status_code"),
        )
        self.statements = Histogram(
            "quart_upsun_request_database",
            "Time of all statements of a request.",
            ("http_route",),
        )
        self.waits = Histogram(
            "db_client_connection_wait_time", "Time that a request waited for a connection.", ()
        )
        self.jobs = Histogram(
            "messaging_process_duration",
            "Duration of attempts at jobs.",
            ("messaging_destination_name", "outcome"),
        )
        self.delays = Histogram(
            "quart_upsun_job_wait", "Time since the job was due.", ("messaging_destination_name",)
        )

    def on_request(self, measure: RequestMeasure) -> None:
        """Count a request."""
        route = measure.route or ""
        if not measure.is_stream:
            status = "" if measure.status is None else str(measure.status)
            self.requests.observe(measure.seconds, measure.method, route, status)
        if measure.database.queries:
            self.statements.observe(measure.database.seconds, route)
        if measure.database.waited_seconds:
            self.waits.observe(measure.database.waited_seconds)

    def on_job(self, measure: JobMeasure) -> None:
        """Count an attempt at a job."""
        self.jobs.observe(measure.seconds, measure.task, measure.outcome)
        self.delays.observe(measure.waited_seconds, measure.task)

    def text(self, common: Mapping[str, str]) -> str:
        """Return all numbers in the text format.

        Args:
            common: labels of all series.
        """
        lines = [
            line
            for each in (self.requests, self.statements, self.waits, self.jobs, self.delays)
            for line in each.lines(common)
        ]
        described = set()
        for gauge in gauges(current_toolkit()):
            name = gauge.name.replace(".", "_") + UNITS.get(gauge.unit, "")
            if name not in described:
                described.add(name)
                lines += _head(name, gauge.description, "gauge")
            labels = {key.replace(".", "_"): value for key, value in gauge.attributes.items()}
            lines.append(f"{name}{_labels({**common, **labels})} {gauge.read()}")
        return "\n".join(lines) + "\n"


def init_app(app: Quart, settings: Settings, observers: list[Observer]) -> None:
    """Count the requests and jobs of an application, and register `/metrics`."""
    collector = Collector()
    observers.append(collector)
    app.extensions["quart_upsun_prometheus"] = collector
    app.register_blueprint(blueprint)


@blueprint.get("/metrics")
@no_store
@public
@no_rate_limit("requires METRICS_TOKEN")
async def metrics() -> Response:
    """Return the metrics of this process, or 401 without the token."""
    settings = current_toolkit().settings
    expected = settings.metrics_token.get_secret_value().encode()
    presented = [token.encode("utf-8", "replace") for token in presented_tokens(request.headers)]
    if not any(hmac.compare_digest(token, expected) for token in presented):
        headers = {"WWW-Authenticate": "Bearer"}
        return Response("Authentication required.\n", 401, headers, content_type="text/plain")
    collector: Collector = current_app.extensions["quart_upsun_prometheus"]
    instance = process_attributes(settings)["service.instance.id"]
    return Response(collector.text({"instance": instance}), content_type=CONTENT_TYPE)


def _head(name: str, description: str, kind: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
