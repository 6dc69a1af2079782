"""Sends traces and metrics to an OTLP collector, with OpenTelemetry's SDK.

Only imported if `OTEL_EXPORTER_OTLP_ENDPOINT` is set. The SDK itself reads the other variables:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/

All sending is done by threads of the SDK, so a collector that hangs delays no request. Their queue
is bounded; what does not fit is dropped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation, set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from quart import Quart

from quart_upsun.database import Database
from quart_upsun.measure import JobMeasure, Observer, RequestMeasure
from quart_upsun.settings import Settings
from quart_upsun.telemetry.failures import FailureLog, silence
from quart_upsun.telemetry.gauges import BOUNDS, Gauge, gauges
from quart_upsun.telemetry.resources import process_attributes
from quart_upsun.telemetry.traces import SCOPE, TraceMiddleware, Traces, operation_of

if TYPE_CHECKING:
    from quart_upsun.extension import ToolkitState


class Session(requests.Session):
    """Records why the last request failed. The exporters log it, and return only that they failed.

    Attributes:
        reason: such as `HTTP 503` or `ConnectionError`.
    """

    reason = "unknown"

    def request(self, *args: Any, **options: Any) -> requests.Response:
        try:
            response = super().request(*args, **options)
        except requests.RequestException as error:
            self.reason = type(error).__name__
            raise
        self.reason = f"HTTP {response.status_code}"
        return response


class SpanExporter(OTLPSpanExporter):
    """An exporter that reports failures once a minute."""

    def __init__(self, failures: FailureLog) -> None:
        self._session, self._failures = Session(), failures
        super().__init__(session=self._session)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._failures.report("traces", self._session.reason)
        return result


class MetricExporter(OTLPMetricExporter):
    """An exporter that reports failures once a minute."""

    def __init__(self, failures: FailureLog) -> None:
        self._session, self._failures = Session(), failures
        super().__init__(session=self._session)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **options: Any
    ) -> MetricExportResult:
        result = super().export(metrics_data, timeout_millis, **options)
        if result is not MetricExportResult.SUCCESS:
            self._failures.report("metrics", self._session.reason)
        return result


class Metrics:
    """An observer that records durations."""

    def __init__(self, provider: MeterProvider, gauges: Iterable[Gauge]) -> None:
        meter = provider.get_meter(SCOPE)

        def histogram(name: str, description: str) -> Any:
            return meter.create_histogram(
                name, "s", description, explicit_bucket_boundaries_advisory=BOUNDS
            )

        self._requests = histogram("http.server.request.duration", "Duration of requests.")
        self._waits = histogram(
            "db.client.connection.wait_time", "Time that requests waited for a connection."
        )
        self._jobs = histogram("messaging.process.duration", "Duration of attempts at jobs.")
        self._delays = histogram("quart_upsun.job.wait", "Time since the job was due.")
        self._statements = histogram("db.client.operation.duration", "Duration of statements.")
        by_name: dict[str, list[Gauge]] = {}
        for each in gauges:
            by_name.setdefault(each.name, []).append(each)
        for name, found in by_name.items():
            meter.create_observable_gauge(
                name, [_callback(found)], unit=found[0].unit, description=found[0].description
            )

    def on_request(self, measure: RequestMeasure) -> None:
        """Record a request. A stream has no duration worth recording."""
        attributes: dict[str, str | int] = {"http.request.method": measure.method}
        if measure.route is not None:
            attributes["http.route"] = measure.route
        if measure.status is not None:
            attributes["http.response.status_code"] = measure.status
        if measure.is_error:
            attributes["error.type"] = str(measure.status)
        if not measure.is_stream:
            self._requests.record(measure.seconds, attributes)
        if measure.database.waited_seconds:
            self._waits.record(measure.database.waited_seconds)

    def on_job(self, measure: JobMeasure) -> None:
        """Record an attempt at a job."""
        attributes = {"messaging.destination.name": measure.task}
        self._delays.record(measure.waited_seconds, attributes)
        if measure.is_error:
            attributes["error.type"] = measure.outcome
        self._jobs.record(measure.seconds, attributes)

    def on_query(
        self, text: str, seconds: float, parameters: Any, error: BaseException | None
    ) -> None:
        """Record a statement; a `QueryObserver`."""
        attributes = {"db.system.name": "postgresql", "db.operation.name": operation_of(text)}
        if error is not None:
            attributes["error.type"] = type(error).__qualname__
        self._statements.record(seconds, attributes)


def init_app(
    app: Quart,
    settings: Settings,
    database: Database,
    observers: list[Observer],
    closers: list[Callable[[], None]],
) -> None:
    """Record traces and metrics of an application.

    Args:
        app: the application.
        settings: its settings.
        database: its database.
        observers: the observers of its requests and jobs.
        closers: functions that send the rest at the end; one is added for each kind of data.
    """
    silence("opentelemetry.exporter", "opentelemetry.sdk._shared_internal", "urllib3")
    traces = Traces(settings.database_url.database or "")
    app.asgi_app = TraceMiddleware(app.asgi_app, traces)  # type: ignore[method-assign]
    observers.append(traces)
    database.query_observers.append(traces.on_query)

    @app.before_serving
    async def start() -> None:
        # Here and not above, because the threads of the SDK would not survive the fork of the
        # server's processes.
        state: ToolkitState = app.extensions["quart_upsun"]
        failures = FailureLog(urlsplit(settings.otel_exporter_otlp_endpoint).netloc)
        found = resource(process_attributes(settings))
        tracers = traces.start(found, SpanExporter(failures))
        meters = MeterProvider(
            [PeriodicExportingMetricReader(MetricExporter(failures))],
            found,
            shutdown_on_exit=False,
        )
        # For spans and metrics of the application's own, by OpenTelemetry's API.
        trace.set_tracer_provider(tracers)
        set_meter_provider(meters)
        metrics = Metrics(meters, gauges(state))
        observers.append(metrics)
        database.query_observers.append(metrics.on_query)
        state.jobs.on_start.append(traces.begin_job)
        closers.extend([tracers.shutdown, meters.shutdown])


def resource(attributes: Mapping[str, str]) -> Resource:
    """Return the resource of the process.

    `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override the attributes.
    """
    return Resource.create(attributes).merge(OTELResourceDetector().detect())


def _callback(found: list[Gauge]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(each.read(), dict(each.attributes)) for each in found]

    return observe
