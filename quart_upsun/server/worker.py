"""The worker, which an application starts with `main()`: it only runs background jobs.

Exit codes: 0 after a graceful shutdown (SIGTERM or SIGINT), 1 if it failed to start.
"""

import asyncio
import gc
from collections.abc import Callable
from typing import TypeVar

from quart import Quart

from quart_upsun.jobs.runner import Runner
from quart_upsun.logging import configure_logging, get_logger
from quart_upsun.server import signals
from quart_upsun.server.memory import return_free_memory
from quart_upsun.settings import Settings

log = get_logger(__name__)

AnySettings = TypeVar("AnySettings", bound=Settings)

# Seconds since SIGTERM. The platform kills the process after 15. Running jobs are requeued earlier,
# after SHUTDOWN_SECONDS of jobs/runner.py.
EXIT_SECONDS = 12


def main(factory: Callable[[AnySettings], Quart], load: Callable[[], AnySettings]) -> int:
    """Run jobs until stopped; return the exit code.

    Args:
        factory: creates the application.
        load: reads its settings.
    """
    signals.exit_immediately()
    return_free_memory()
    # `run_jobs` is for server processes. This process runs jobs itself.
    settings = load().model_copy(update={"run_jobs": False})
    configure_logging(settings.log_level)
    app = factory(settings)
    try:
        asyncio.run(work(app))
    except Exception:
        log.exception("worker failed")
        return 1
    finally:
        signals.ignore_signals()
    return 0


async def work(app: Quart) -> None:
    """Run jobs until a signal stops the worker."""
    runner: Runner = app.extensions["quart_upsun"].jobs

    def stop() -> None:
        if not runner.is_stopping:
            log.info("worker stopping", in_flight=runner.running_count)
            runner.stop()

    await app.startup()
    # Exit before the platform kills the process. Jobs still running are retried once their
    # heartbeat is missed.
    signals.listen_for_stop(stop, seconds=EXIT_SECONDS, process="worker")
    # Excludes long-lived objects from garbage collection, which also runs at exit. Measured: the
    # process exits in 0.1 s instead of 1.4 s.
    gc.collect()
    gc.freeze()
    log.info("worker ready")
    try:
        await runner.run()
    finally:
        signals.block_signals()
        await app.shutdown()
    log.info("worker stopped")
