"""Spans of the current request or job. They cost nothing while nothing records them.

This module imports no library, so that the parts of the toolkit can use it without OpenTelemetry.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeAlias

Attributes: TypeAlias = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """A step of a request or a job."""

    def set_attributes(self, attributes: Attributes) -> None: ...


class Trace(Protocol):
    """The span of a request or a job, to which other spans belong."""

    traceparent: str
    """Its id, for a job that it enqueues: https://www.w3.org/TR/trace-context/."""

    def client_span(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]: ...


current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=None)
"""The trace of the current request or job; None if nothing records it."""


class _NoSpan:
    def set_attributes(self, attributes: Attributes) -> None: ...


_NO_SPAN = _NoSpan()


@contextmanager
def client_span(name: str, attributes: Attributes) -> Iterator[Span]:
    """Record the block as a call of another service, if the request or job is traced.

    An exception marks the span as failed, with its type. Its message is not recorded.

    Args:
        name: a short name without values, such as `GET`.
        attributes: names of the semantic conventions, and values without personal data.
    """
    trace = current_trace.get()
    if trace is None:
        yield _NO_SPAN
        return
    with trace.client_span(name, attributes) as span:
        yield span


def job_headers() -> dict[str, str] | None:
    """Return the headers of a job that the current request or job enqueues."""
    trace = current_trace.get()
    return None if trace is None else {"traceparent": trace.traceparent}
