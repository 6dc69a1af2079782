"""SIGTERM and SIGINT: the first ends the process in good order and in time, more change nothing.

A process goes through four states, and none of them may be skipped: `exit_immediately` while
there is nothing to finish, `listen_for_stop` while it works, `block_signals` before its loop ends,
`ignore_signals` after that.
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
    """Let the process end with exit code 0 wherever it stands."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))


def listen_for_stop(stop: Callable[[], None], *, seconds: float, process: str) -> None:
    """Call `stop` in the running loop at each signal.

    Args:
        stop: begins the end; called again if more signals come.
        seconds: from the first signal on. Then the process ends with exit code 0, whatever hangs.
        process: `server` or `worker`, for the log.
    """

    def start_clock(number: int, frame: FrameType | None) -> None:
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def give_up(number: int, frame: FrameType | None) -> None:
        try:
            log.error("shutdown timed out", process=process)
        finally:
            os._exit(0)

    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGALRM, give_up)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
        # In place of the empty handler that asyncio has put there: unlike `stop` it runs also when
        # something blocks the loop.
        signal.signal(number, start_clock)


def block_signals() -> None:
    """Keep signals away while the loop ends.

    The loop closes its pipe before it gives the signals up: one more would complain. And between
    giving them up and our ignoring them, one more would kill.
    """
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def ignore_signals() -> None:
    """Ignore signals, those that were blocked among them: asyncio has put the default back."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
