"""Handle SIGTERM and SIGINT: the first starts a graceful shutdown, more have no effect.

A process calls these functions in order: `exit_immediately` while there is nothing to finish,
`listen_for_stop` while it works, `block_signals` before its event loop closes, and `ignore_signals`
after that.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType

from quart_upsun.logging import get_logger

log = get_logger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def exit_immediately() -> None:
    """Make signals exit the process at once with code 0."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))


def listen_for_stop(stop: Callable[[], None], *, seconds: float, process: str) -> None:
    """Call `stop` in the running event loop at each signal.

    Args:
        stop: starts the shutdown; called again for further signals.
        seconds: the time limit since the first signal. After it the process exits with code 0, even
            if something hangs.
        process: `server` or `worker`, for the log.
    """

    def start_timer(number: int, frame: FrameType | None) -> None:
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def exit_now(number: int, frame: FrameType | None) -> None:
        try:
            log.error("shutdown timed out", process=process)
        finally:
            os._exit(0)

    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGALRM, exit_now)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
        # Replaces asyncio's empty handler. Unlike `stop`, it also runs while the event loop is
        # blocked.
        signal.signal(number, start_timer)


def block_signals() -> None:
    """Block signals while the event loop closes.

    The loop closes its wakeup pipe before it removes its handlers, so a signal would cause an
    error. Between the removal and `ignore_signals`, a signal would kill the process.
    """
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def ignore_signals() -> None:
    """Ignore signals, including blocked ones. asyncio has restored the default handlers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
