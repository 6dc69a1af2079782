"""The measure of a request or a job, and the observers that get it."""

import re
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias

from quart_upsun.database.usage import DatabaseUse
from quart_upsun.logging import get_logger

log = get_logger(__name__)

# https://opentelemetry.io/docs/specs/semconv/registry/attributes/http/: a client can send any
# method, and each would be a series of its own.
KNOWN_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
)
OTHER_METHOD = "_OTHER"

# https://www.w3.org/TR/trace-context/#traceparent-header. Later versions may append fields.
TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:=+/-]{1,128}")

JobOutcome: TypeAlias = Literal["done", "retried", "failed", "postponed", "requeued", "taken over"]


class ParentSpan(NamedTuple):
    """The caller's span, from a `traceparent` header."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    is_sampled: bool


@dataclass(slots=True)
class RequestMeasure:
    """A request over HTTP, also one that was rejected before it reached a view."""

    method: str
    """One of `KNOWN_METHODS`, or `_OTHER`."""
    request_id: str
    trace_id: str
    """32 hexadecimal digits; the caller's, if there is a `parent`."""
    parent: ParentSpan | None = None
    """The caller's span; None unless `TRUST_TRACE_HEADERS` is set."""
    route: str | None = None
    """The URL rule; None if none matched. It never contains values of the path."""
    status: int | None = None
    """The status code; None if the client disconnected before the response."""
    response_bytes: int = 0
    """The size of the body, as sent."""
    user_id: int | None = None
    is_stream: bool = False
    """Whether the response has no time limit, as an event stream. Its duration says nothing."""
    database: DatabaseUse = field(default_factory=DatabaseUse)
    started: float = field(default_factory=time.perf_counter)
    """Seconds of the clock `time.perf_counter`."""
    seconds: float = 0.0
    """The duration until the response was sent, once the request has ended."""

    @property
    def is_error(self) -> bool:
        """Whether the server failed."""
        return self.status is not None and self.status >= 500


@dataclass(slots=True)
class JobMeasure:
    """An attempt at a job."""

    task: str
    job_id: int
    attempt: int
    """The number of this attempt, starting at 1."""
    waited_seconds: float
    """The time since the job was due."""
    trace_id: str
    """32 hexadecimal digits."""
    outcome: JobOutcome = "done"
    database: DatabaseUse = field(default_factory=DatabaseUse)
    started: float = field(default_factory=time.perf_counter)
    """Seconds of the clock `time.perf_counter`."""
    seconds: float = 0.0
    """The duration, once the attempt has ended."""

    @property
    def is_error(self) -> bool:
        """Whether the attempt failed."""
        return self.outcome in {"retried", "failed"}


class Observer(Protocol):
    """Gets the measure of each request and job at its end. It must be fast."""

    def on_request(self, measure: RequestMeasure) -> None: ...

    def on_job(self, measure: JobMeasure) -> None: ...


current_request: ContextVar[RequestMeasure | None] = ContextVar("request_measure", default=None)


def set_user_id(user_id: int | None) -> None:
    """Record the user of the current request."""
    measure = current_request.get()
    if measure is not None:
        measure.user_id = user_id


def known_method(method: str) -> str:
    """Return a standard HTTP method, or `_OTHER`."""
    return method if method in KNOWN_METHODS else OTHER_METHOD


def parse_traceparent(header: bytes) -> ParentSpan | None:
    """Parse a `traceparent` header; None if it is invalid."""
    match = TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    is_invalid = version == b"ff" or (version == b"00" and more is not None)
    if is_invalid or not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return ParentSpan(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & 1))


def parse_request_id(header: bytes) -> str | None:
    """Parse an `X-Request-ID` header; None if it has characters that an id does not need."""
    return header.decode() if REQUEST_ID.fullmatch(header) else None


def end_measure(measure: RequestMeasure | JobMeasure, observers: Sequence[Observer]) -> None:
    """Complete a measure, and pass it to the observers."""
    measure.seconds = time.perf_counter() - measure.started
    for each in observers:
        try:
            if isinstance(measure, RequestMeasure):
                each.on_request(measure)
            else:
                each.on_job(measure)
        except Exception:
            log.exception("observer failed")
