"""Spans of requests, jobs, statements and calls of other services.

Only imported if `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Names are those of the semantic conventions:
https://opentelemetry.io/docs/specs/semconv/
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import structlog
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from opentelemetry import context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
)

from quart_upsun.database.errors import sqlstate
from quart_upsun.measure import (
    JobMeasure,
    ParentSpan,
    RequestMeasure,
    current_request,
    parse_traceparent,
)
from quart_upsun.spans import Attributes, Span, current_trace

SCOPE = "quart_upsun"
MAX_QUERY_LENGTH = 2000  # characters
OPERATION = re.compile(r"\s*(?:--.*\n\s*)*([A-Za-z]+)")

_trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""The trace id of the next root span. The lines of the log have it from the start."""


class IdGenerator(RandomIdGenerator):
    """Gives a root span the trace id that the lines of the log have."""

    def generate_trace_id(self) -> int:
        chosen = _trace_id.get()
        return int(chosen, 16) if chosen else super().generate_trace_id()


class RecordedTrace:
    """The span of a request or a job; a `Trace`."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self.tracer = tracer
        self.span = span
        self.context = trace.set_span_in_context(span)
        self.is_recording = span.is_recording()
        found = span.get_span_context()
        self.span_id = trace.format_span_id(found.span_id)
        trace_id = trace.format_trace_id(found.trace_id)
        self.traceparent = f"00-{trace_id}-{self.span_id}-{found.trace_flags & 1:02x}"

    @contextmanager
    def client_span(self, name: str, attributes: Attributes) -> Iterator[Span]:
        """Record the block as a call of another service."""
        span = self.tracer.start_span(name, self.context, SpanKind.CLIENT, dict(attributes))
        try:
            yield span
        except BaseException as error:
            _set_error(span, type(error).__qualname__)
            raise
        finally:
            span.end()


class Traces:
    """Creates the spans of a process.

    Args:
        database: the name of the database.
    """

    def __init__(self, database: str) -> None:
        self._tracer: trace.Tracer = trace.NoOpTracer()
        self._database = database

    def start(self, resource: Resource, exporter: SpanExporter) -> TracerProvider:
        """Begin to record. Call it in the process that serves: threads do not survive a fork."""
        provider = TracerProvider(
            resource=resource, id_generator=IdGenerator(), shutdown_on_exit=False
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))  # its queue is bounded
        self._tracer = provider.get_tracer(SCOPE)
        return provider

    def begin_request(self, measure: RequestMeasure, scheme: str) -> RecordedTrace:
        """Start the span of a request."""
        span = self._start(
            measure.method if measure.method != "_OTHER" else "HTTP",
            SpanKind.SERVER,
            measure.trace_id,
            {"http.request.method": measure.method, "url.scheme": scheme},
            parent=measure.parent,
        )
        return self._enter(span)

    def end_request(self, begun: RecordedTrace, measure: RequestMeasure) -> None:
        """End the span of a request. Its attributes are known by now."""
        span = begun.span
        if begun.is_recording:
            if measure.route is not None:
                span.update_name(f"{measure.method} {measure.route}")
                span.set_attribute("http.route", measure.route)
            if measure.status is not None:
                span.set_attribute("http.response.status_code", measure.status)
                if measure.is_error:
                    _set_error(span, str(measure.status))
        span.end()

    def begin_job(self, measure: JobMeasure, headers: Mapping[str, Any] | None) -> None:
        """Start the span of an attempt at a job, with a link to what has enqueued it.

        It is a trace of its own, since a job may run hours later and several times.
        """
        header = (headers or {}).get("traceparent")
        cause = parse_traceparent(header.encode()) if isinstance(header, str) else None
        span = self._start(
            f"process {measure.task}",
            SpanKind.CONSUMER,
            measure.trace_id,
            {
                "messaging.system": "postgresql",
                "messaging.operation.type": "process",
                "messaging.destination.name": measure.task,
                "messaging.message.id": str(measure.job_id),
                "quart_upsun.job.attempt": measure.attempt,
                "quart_upsun.job.waited": measure.waited_seconds,
            },
            links=[Link(_span_context(cause))] if cause else (),
        )
        self._enter(span)

    def on_job(self, measure: JobMeasure) -> None:
        """End the span of an attempt; an `Observer`."""
        begun = current_trace.get()
        if isinstance(begun, RecordedTrace):
            begun.span.set_attribute("quart_upsun.job.outcome", measure.outcome)
            if measure.is_error:
                _set_error(begun.span, measure.outcome)
            begun.span.end()

    def on_request(self, measure: RequestMeasure) -> None:
        """Do nothing: the middleware ends the span, within its context."""

    def on_query(
        self, text: str, seconds: float, parameters: Any, error: BaseException | None
    ) -> None:
        """Record a statement without its parameters; a `QueryObserver`."""
        begun = current_trace.get()
        if not isinstance(begun, RecordedTrace) or not begun.is_recording:
            return
        ended = time.time_ns()
        operation = operation_of(text)
        span = begun.tracer.start_span(
            operation,
            begun.context,
            SpanKind.CLIENT,
            {
                "db.system.name": "postgresql",
                "db.namespace": self._database,
                "db.operation.name": operation,
                "db.query.text": text[:MAX_QUERY_LENGTH],
            },
            start_time=ended - int(seconds * 1e9),
        )
        if error is not None:
            state = sqlstate(error)
            if state:
                span.set_attribute("db.response.status_code", state)
            _set_error(span, state or type(error).__qualname__)
        span.end(ended)

    def _start(
        self,
        name: str,
        kind: SpanKind,
        trace_id: str,
        attributes: Attributes,
        *,
        parent: ParentSpan | None = None,
        links: Any = (),
    ) -> trace.Span:
        around = context.Context()
        if parent is not None:
            around = trace.set_span_in_context(NonRecordingSpan(_span_context(parent)), around)
        token = _trace_id.set(trace_id)
        try:
            return self._tracer.start_span(name, around, kind, dict(attributes), links)
        finally:
            _trace_id.reset(token)

    def _enter(self, span: trace.Span) -> RecordedTrace:
        begun = RecordedTrace(self._tracer, span)
        if span.get_span_context().is_valid:
            # A library that OpenTelemetry instruments finds its parent there.
            context.attach(begun.context)
            current_trace.set(begun)
            structlog.contextvars.bind_contextvars(span_id=begun.span_id)
        return begun


class TraceMiddleware:
    """ASGI middleware that records the span of each request over HTTP."""

    def __init__(self, app: ASGIFramework, traces: Traces) -> None:
        self.app = app
        self.traces = traces

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        measure = current_request.get() if scope["type"] == "http" else None
        if measure is None:
            await self.app(scope, receive, send)
            return
        begun = self.traces.begin_request(measure, str(scope.get("scheme", "http")))
        try:
            await self.app(scope, receive, send)
        except Exception:
            if measure.status is None:
                _set_error(begun.span, "500")
            raise
        finally:
            self.traces.end_request(begun, measure)
            current_trace.set(None)


def operation_of(text: str) -> str:
    """Return the first word of a statement, such as SELECT."""
    match = OPERATION.match(text)
    return match[1].upper() if match else "SQL"


def _span_context(found: ParentSpan) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if found.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(int(found.trace_id, 16), int(found.span_id, 16), True, flags)


def _set_error(span: trace.Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
