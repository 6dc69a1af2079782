"""One line a minute in the log while a collector does not accept what it is sent."""

import logging
import threading
import time

from quart_upsun.logging import get_logger

log = get_logger(__name__)

INTERVAL_SECONDS = 60.0


class FailureLog:
    """Logs that telemetry was lost. Used by the threads that send it.

    Args:
        destination: the host of the collector.
    """

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._lock = threading.Lock()
        self._logged_at = float("-inf")
        self._count = 0

    def report(self, signal: str, reason: str) -> None:
        """Count a failure, and log it unless another one was logged within a minute.

        Args:
            signal: `traces`, `metrics` or `errors`.
            reason: such as `HTTP 503`, without any content.
        """
        with self._lock:
            self._count += 1
            now = time.monotonic()
            if now - self._logged_at < INTERVAL_SECONDS:
                return
            self._logged_at, count, self._count = now, self._count, 0
        log.warning(
            "telemetry not delivered",
            destination=self._destination,
            signal=signal,
            reason=reason,
            failures=count,
        )


def silence(*names: str) -> None:
    """Silence loggers of libraries, which log each attempt, some with a traceback."""
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
