"""The worker, which an application starts with `main()`: it runs jobs, and nothing else.

Exit codes: 0 after SIGTERM or SIGINT, 1 when it could not start.
"""

import asyncio
import gc
from collections.abc import Callable
from typing import TypeVar

from quart import Quart

from quart_upsun.jobs.runner import Runner
from quart_upsun.logging import configure_logging, get_logger
from quart_upsun.server import signals
from quart_upsun.settings import Settings

log = get_logger(__name__)

AnySettings = TypeVar("AnySettings", bound=Settings)

# Seconds since SIGTERM. The platform kills after 15; after FINISH of jobs/runner.py the jobs under
# way are put back.
EXIT_SECONDS = 12


def main(factory: Callable[[AnySettings], Quart], load: Callable[[], AnySettings]) -> int:
    """Work until told to stop, and return the exit code.

    Args:
        factory: makes the application.
        load: reads its settings.
    """
    signals.exit_immediately()
    # The server processes leave the jobs to us, and here is no server.
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
    """Do jobs until a signal comes."""
    runner: Runner = app.extensions["quart_upsun"].jobs

    def stop() -> None:
        if not runner.is_stopping:
            log.info("worker stopping", in_flight=runner.running_count)
            runner.stop()

    await app.startup()
    # Exit before the platform kills the process. Jobs still running are retried once their
    # heartbeat is missed.
    signals.listen_for_stop(stop, seconds=EXIT_SECONDS, process="worker")
    # What lives as long as the process is kept from the garbage collector, which would look through
    # it at the end as well: measured, 1.4 s until the process is gone, and 0.1 without.
    gc.collect()
    gc.freeze()
    log.info("worker ready")
    try:
        await runner.run()
    finally:
        signals.block_signals()
        await app.shutdown()
    log.info("worker stopped")
