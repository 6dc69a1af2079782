"""The worker: `python -m app.worker` does the jobs that the web processes ask for.

Exit codes: 0 after SIGTERM or SIGINT, 1 when it could not start.
"""

import asyncio
import gc
import sys
from collections.abc import Callable

from quart import Quart

from app import create_app, logs, stop_signals
from app.jobs.runner import Runner
from app.settings import Settings, load

log = logs.get("app.worker")

# Seconds since SIGTERM. The platform kills after 15; by FINISH of app/jobs/runner.py what is under
# way begins to be put back.
EXIT = 12


def main(factory: Callable[[Settings], Quart] = create_app) -> int:
    """Work until told to stop, and return the exit code."""
    stop_signals.end_at_once()
    # The server processes leave the jobs to us, and here is no server.
    settings = load().model_copy(update={"run_jobs": False})
    logs.configure(settings.log_level)
    app = factory(settings)
    try:
        asyncio.run(work(app))
    except Exception:
        log.exception("the worker failed")
        return 1
    finally:
        stop_signals.ignore()
    return 0


async def work(app: Quart) -> None:
    """Do jobs until a signal comes."""
    runner: Runner = app.extensions["jobs"]

    def stop() -> None:
        if not runner.is_stopping:
            log.info("stopping", under_way=runner.under_way)
            runner.stop()

    await app.startup()
    # Before the platform kills: what is under way is begun again when nobody hears of us.
    stop_signals.listen(stop, seconds=EXIT, last_words="gave up waiting for jobs to end")
    # What lives as long as the process is kept from the garbage collector, which would look through
    # it at the end as well: measured, 1.4 s until the process is gone, and 0.1 without.
    gc.collect()
    gc.freeze()
    log.info("working")
    try:
        await runner.run()
    finally:
        stop_signals.block()
        await app.shutdown()
    log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
