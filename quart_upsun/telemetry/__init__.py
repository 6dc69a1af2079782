"""Traces, metrics and error reports for other systems. Each is off until a variable is set.

What is off is not imported. `init_app` sets up what the settings ask for.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from quart_upsun.time_limits import shutdown_limit

if TYPE_CHECKING:
    from quart import Quart

    from quart_upsun.database import Database
    from quart_upsun.measure import Observer
    from quart_upsun.settings import Settings

__all__ = ["init_app"]

FLUSH_SECONDS = 0.8  # at shutdown


def init_app(
    app: "Quart", settings: "Settings", database: "Database", observers: "list[Observer]"
) -> None:
    """Set up telemetry. Call it before the middleware, whose measures it reads.

    Raises:
        SettingsError: a variable is set, but its packages are not installed.
    """
    closers: list[Callable[[], None]] = []
    if settings.otel_exporter_otlp_endpoint:
        try:
            from quart_upsun.telemetry import otlp
        except ModuleNotFoundError as error:
            raise _missing("OTEL_EXPORTER_OTLP_ENDPOINT", "otel", error) from None
        otlp.init_app(app, settings, database, observers, closers)
    if settings.sentry_dsn.get_secret_value():
        try:
            from quart_upsun.telemetry import error_reports
        except ModuleNotFoundError as error:
            raise _missing("SENTRY_DSN", "sentry", error) from None
        error_reports.init_app(app, settings, closers)
    if settings.metrics_token.get_secret_value():
        from quart_upsun.telemetry import prometheus

        prometheus.init_app(app, settings, observers)

    @app.after_serving
    async def flush() -> None:
        await _run_in_threads(closers)
        closers.clear()


async def _run_in_threads(functions: list[Callable[[], None]]) -> None:
    """Run functions that may block, and wait for `FLUSH_SECONDS` at most.

    Not with `asyncio.to_thread()`, whose threads the end of the event loop waits for.
    """
    threads = [threading.Thread(target=each, daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + shutdown_limit(FLUSH_SECONDS)
    # Polls, because a thread that ends after the deadline must not touch the event loop.
    while any(map(threading.Thread.is_alive, threads)) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def _missing(variable: str, extra: str, error: ModuleNotFoundError) -> SystemExit:
    from quart_upsun.settings import SettingsError

    return SettingsError(
        f"{variable} is set, but the package {error.name!r} is not installed. Add"
        f" quart-upsun[{extra}] to the requirements, or unset {variable}."
    )
