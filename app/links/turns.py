"""Few fetches at a time for each host, and a waiting line for the jobs that come too early.

A job whose host is busy does not wait: it goes back into the queue and gives its place in the
worker to another one. The line remembers it, and the fetch that leaves the host calls the next job.
All of this is the state of one process; a job that nobody calls is due again by itself.
"""

import asyncio
import random
from contextlib import ExitStack
from datetime import timedelta
from typing import Self
from weakref import WeakValueDictionary

PER_HOST = 2  # fetches at a time, in each process
# Seconds after which a job looks for a free turn although nobody has called it.
SOONEST, LATEST = 5.0, 3600.0


class HostBusyError(Exception):
    """As many fetches as may be are talking to the host.

    Attributes:
        host: its name.
    """

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host


class Line:
    """The jobs that wait for one host, by their numbers, in the order in which they came."""

    def __init__(self) -> None:
        self.jobs: dict[int, None] = {}
        self.seconds = 1.0  # of a fetch, on average


class Turns:
    """Who may talk to which host."""

    def __init__(self) -> None:
        # A semaphore lives as long as somebody holds it or waits for it.
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._lines: dict[str, Line] = {}

    def __len__(self) -> int:
        """Return how many hosts somebody talks to, or waits for."""
        return len(self._hosts)

    def of(self, host: str) -> asyncio.Semaphore:
        """Return the turns of a host. The caller keeps a reference for as long as it matters."""
        return self._hosts.setdefault(host, asyncio.Semaphore(PER_HOST))

    def is_free(self, host: str) -> bool:
        turn = self._hosts.get(host)
        return turn is None or not turn.locked()

    def longest_wait(self, host: str) -> timedelta:
        """Return after how long a job that lines up now looks for a turn without being called."""
        line = self._lines.get(host, Line())
        # Twice as long as it should take, so that the line is normally faster than the clock.
        wait = 2 * (len(line.jobs) + PER_HOST) * line.seconds / PER_HOST
        bounded = min(max(wait, SOONEST), LATEST)
        return timedelta(seconds=bounded * random.uniform(1.0, 1.25))  # noqa: S311

    def line_up(self, host: str, job: int) -> None:
        """Put a job at the end of the line, unless it waits already."""
        self._lines.setdefault(host, Line()).jobs.setdefault(job)

    def next_in_line(self, host: str) -> int | None:
        """Take the first job out of the line of a host; None if nobody waits."""
        line = self._lines.get(host)
        if line is None:
            return None
        job = next(iter(line.jobs))
        del line.jobs[job]
        if not line.jobs:
            del self._lines[host]
        return job

    def took(self, host: str, seconds: float) -> None:
        """Note how long a fetch has kept a turn."""
        if line := self._lines.get(host):
            line.seconds += (seconds - line.seconds) / 8


class Visit:
    """The turns that one fetch holds: of the link's host, and of those it is sent on to.

    Attributes:
        hosts: all hosts that it has been to.
    """

    def __init__(self, turns: Turns) -> None:
        self.hosts: list[str] = []
        self._turns = turns
        self._held: dict[str, float] = {}  # host, and since when
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    async def enter(self, host: str, patience: float | None) -> None:
        """Take a turn of a host, if this does not hold one.

        Args:
            host: its name.
            patience: seconds to wait for it; None to wait as long as it takes.

        Raises:
            HostBusyError: there was none in time.
        """
        if host in self._held:
            return
        turn = self._turns.of(host)
        if patience == 0 and turn.locked():
            raise HostBusyError(host)
        try:
            async with asyncio.timeout(patience or None):
                await turn.acquire()
        except TimeoutError:
            raise HostBusyError(host) from None
        self._stack.callback(turn.release)
        self._held[host] = asyncio.get_running_loop().time()
        self.hosts.append(host)

    def leave(self) -> None:
        """Give all turns back."""
        now = asyncio.get_running_loop().time()
        for host, since in self._held.items():
            self._turns.took(host, now - since)
        self._held.clear()
        self._stack.close()
