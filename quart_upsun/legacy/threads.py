"""A bounded pool of daemon threads for calls that may hang.

A `ThreadPoolExecutor` does not fit: the interpreter waits for its threads when it exits, so a call
that hangs would delay each shutdown until the time limit.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress


class DaemonThreads:
    """A pool of up to `count` daemon threads, which start when they are needed.

    A call cannot be interrupted. One that hangs occupies its thread until it returns, so the number
    of hanging calls is bounded, too.

    Args:
        count: the maximum number of threads.
        name: the prefix of their names.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self.busy = 0
        """The number of threads that run a call, including calls that hang."""
        self._name = name
        self._threads = 0
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._free = asyncio.Semaphore(count)

    async def submit(self, call: Callable[[], None], *, wait_seconds: float) -> None:
        """Run a call in a free thread; return when it has been handed over.

        Args:
            call: must not raise.
            wait_seconds: how long to wait for a free thread.

        Raises:
            TimeoutError: no thread became free.
        """
        async with asyncio.timeout(wait_seconds):
            await self._free.acquire()
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                call()
            finally:
                with suppress(RuntimeError):  # the loop was closed while the call was hanging
                    loop.call_soon_threadsafe(self._release)

        self.busy += 1
        if self.busy > self._threads:
            self._threads += 1
            name = f"{self._name}-{self._threads}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        self._calls.put(run)

    def _release(self) -> None:
        self.busy -= 1
        self._free.release()

    def _work(self) -> None:
        while True:
            self._calls.get()()
