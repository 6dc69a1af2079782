"""Log a line for each slow or failed request and job, or for all of them.

The keys of requests are those of OpenTelemetry's semantic conventions:
https://opentelemetry.io/docs/specs/semconv/
"""

from quart_upsun.logging import get_logger
from quart_upsun.measure import JobMeasure, Observer, RequestMeasure
from quart_upsun.settings import Settings

log = get_logger(__name__)


class EventLog:
    """An observer that logs.

    Args:
        slow_seconds: log what takes longer, and what fails; with 0, everything.
    """

    def __init__(self, slow_seconds: float) -> None:
        self._slow_seconds = slow_seconds

    def on_request(self, measure: RequestMeasure) -> None:
        """Log a request that was slow or failed. A stream is not slow."""
        is_slow = measure.seconds >= self._slow_seconds
        if measure.is_stream and self._slow_seconds:
            is_slow = False
        if not is_slow and not measure.is_error:
            return
        log.info(
            "request handled",
            **{
                "http.request.method": measure.method,
                "http.route": measure.route,
                "http.response.status_code": measure.status,
                "http.response.body.size": measure.response_bytes,
                "http.server.request.duration": round(measure.seconds, 6),
                "db.client.operation.duration": round(measure.database.seconds, 6),
                "db.client.operation.count": measure.database.queries,
                "db.client.connection.wait_time": round(measure.database.waited_seconds, 6),
                "user.id": measure.user_id,
            },
            is_stream=measure.is_stream,
        )

    def on_job(self, measure: JobMeasure) -> None:
        """Log an attempt that was slow or failed."""
        if measure.seconds < self._slow_seconds and not measure.is_error:
            return
        log.info(
            "job handled",
            task=measure.task,
            job_id=measure.job_id,
            attempt=measure.attempt,
            outcome=measure.outcome,
            waited_seconds=round(measure.waited_seconds, 6),
            duration_seconds=round(measure.seconds, 6),
            **{
                "db.client.operation.duration": round(measure.database.seconds, 6),
                "db.client.operation.count": measure.database.queries,
                "db.client.connection.wait_time": round(measure.database.waited_seconds, 6),
            },
        )


def init_app(observers: list[Observer], settings: Settings) -> None:
    """Add the log to the observers, unless `REQUEST_LOG` is off."""
    if settings.request_log != "off":
        slow_seconds = settings.slow_request_ms / 1000 if settings.request_log == "slow" else 0
        observers.append(EventLog(slow_seconds))
