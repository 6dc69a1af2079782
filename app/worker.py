"""The worker: `python -m app.worker` does the jobs that the web processes ask for.

Exit codes: 0 after SIGTERM or SIGINT, 1 when it could not start.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from quart import Quart

from app import create_app, logs
from app.jobs.runner import Runner
from app.settings import Settings, load

log = logs.get("app.worker")

# Seconds since SIGTERM. The platform kills after 15; by FINISH of app/jobs/runner.py what is under
# way begins to be put back.
EXIT = 12

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(factory: Callable[[Settings], Quart] = create_app) -> int:
    """Work until told to stop, and return the exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))  # while there is nothing to put back
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
        for number in STOP_SIGNALS:  # asyncio has put the default back, which would kill
            signal.signal(number, signal.SIG_IGN)  # drops what has come while it was blocked, too
    return 0


async def work(app: Quart) -> None:
    """Do jobs until a signal comes."""
    loop = asyncio.get_running_loop()
    runner: Runner = app.extensions["jobs"]

    def stop() -> None:
        if not runner.is_stopping:
            log.info("stopping", under_way=runner.under_way)
            runner.stop()

    await app.startup()
    signal.signal(signal.SIGALRM, give_up)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
        # In place of the empty handler that asyncio has put there: unlike `stop` it runs also when
        # a job blocks the loop.
        signal.signal(number, start_clock)
    # What lives as long as the process is kept from the garbage collector, which would look through
    # it at the end as well: measured, 1.4 s until the process is gone, and 0.1 without.
    gc.collect()
    gc.freeze()
    log.info("working")
    try:
        await runner.run()
    finally:
        # The loop closes this pipe before it gives the signals up: one more would complain. And
        # between giving them up and our ignoring them, one more would kill.
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        await app.shutdown()
    log.info("stopped")


def start_clock(number: int, frame: FrameType | None) -> None:
    """Give the process `EXIT` seconds from the first signal."""
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        signal.setitimer(signal.ITIMER_REAL, EXIT)


def give_up(number: int, frame: FrameType | None) -> None:
    """End before the platform kills: what is under way is begun again when nobody hears of us."""
    try:
        log.error("gave up waiting for jobs to end")
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
