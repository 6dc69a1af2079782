"""Limit concurrent fetches per host, and keep a waiting line of the jobs that came too early.

A job whose host is busy does not wait in the worker, except for a few: it goes back into the queue
and gives its place to another job. The line remembers it, and the fetch that leaves the host calls
the next job; `job_turns` does that.

All of this is the state of one process. Another process may take a job that was called here, so a
line that has stopped calls the next one; and a job that nobody calls becomes due by itself.
"""

import asyncio
import random
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from typing import Self
from weakref import WeakValueDictionary

from quart_upsun.time_limits import pause_time_limit

MAX_FETCHES_PER_HOST = 2  # fetches at a time, in each process
# Jobs that wait for a turn in the worker, so that none is lost while the next job comes: a host has
# few of them, whatever its line.
WAITING = 2
# Seconds after which a job looks for a free turn although nobody has called it.
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 5.0, 3600.0
CALL_TIMEOUT_SECONDS = 1.0  # that a job may take to come when it is called


class HostBusyError(Exception):
    """The host has no free turn.

    Attributes:
        host: its name.
    """

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host


class WaitingLine:
    """The jobs that wait for one host.

    Higher priorities go first; within a priority, owners take turns, so that a single link does not
    wait behind the thousands of another user.
    """

    def __init__(self) -> None:
        self.seconds = 1.0  # a fetch keeps its turn, on average
        self.called_at = float("-inf")
        self._jobs: dict[tuple[int, int], dict[int, None]] = {}  # by priority and owner

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def add(self, job: int, priority: int, owner: int) -> None:
        """Put a job behind the others of its owner, unless it waits already."""
        self._jobs.setdefault((priority, owner), {}).setdefault(job)

    def pop(self) -> int:
        """Take out the job whose turn is next."""
        key = max(self._jobs, key=lambda each: each[0])  # of equals the one that is longest there
        jobs = self._jobs.pop(key)
        job = next(iter(jobs))
        del jobs[job]
        if jobs:
            self._jobs[key] = jobs
        return job


class Turns:
    """The turns of all hosts, and the jobs that wait for one."""

    def __init__(self) -> None:
        # A semaphore lives as long as somebody holds it or waits for it.
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._waiting: Counter[str] = Counter()
        self._lines: dict[str, WaitingLine] = {}

    def __len__(self) -> int:
        """Return how many hosts somebody talks to, or waits for."""
        return len(self._hosts)

    def is_free(self, host: str) -> bool:
        """Tell whether a fetch could talk to the host at once."""
        turn = self._hosts.get(host)
        return turn is None or not turn.locked()

    def waiting(self, host: str) -> int:
        """Return how many wait in this process for a turn of the host."""
        return self._waiting[host]

    def has_room(self, host: str) -> bool:
        """Tell whether a job may talk to the host, or wait for that in the worker."""
        return self.is_free(host) or self.waiting(host) < WAITING

    async def take(self, host: str, seconds: float | None) -> asyncio.Semaphore:
        """Take one of the turns of a host, and return what it is to be given back to.

        Args:
            host: its name.
            seconds: to wait for it at most.

        Raises:
            TimeoutError: there was none in time.
        """
        turn = self._hosts.setdefault(host, asyncio.Semaphore(MAX_FETCHES_PER_HOST))
        if not turn.locked():
            await turn.acquire()  # at once
            return turn
        self._waiting[host] += 1
        try:
            with pause_time_limit():
                async with asyncio.timeout(seconds):
                    await turn.acquire()
        finally:
            self._waiting[host] -= 1
            if not self._waiting[host]:
                del self._waiting[host]
        return turn

    def longest_wait(self, host: str) -> timedelta:
        """Return after how long a job that lines up now looks for a turn without being called."""
        line = self._lines.get(host, WaitingLine())
        # Twice as long as it should take, so that the line is normally faster than the clock.
        wait = 2 * (len(line) + MAX_FETCHES_PER_HOST) * line.seconds / MAX_FETCHES_PER_HOST
        bounded = min(max(wait, MIN_WAIT_SECONDS), MAX_WAIT_SECONDS)
        return timedelta(seconds=bounded * random.uniform(1.0, 1.25))  # noqa: S311

    def line_up(self, host: str, job: int, *, priority: int = 0, owner: int = 0) -> None:
        """Let a job wait for a host; see `WaitingLine`."""
        self._lines.setdefault(host, WaitingLine()).add(job, priority, owner)

    def next_in_line(self, host: str) -> int | None:
        """Take the next job out of the line of a host; None if nobody waits."""
        line = self._lines.get(host)
        if line is None:
            return None
        job = line.pop()
        line.called_at = asyncio.get_running_loop().time()
        if not len(line):
            del self._lines[host]
        return job

    def idle(self) -> list[str]:
        """Return the hosts with room and a line whose last call was not answered."""
        late = asyncio.get_running_loop().time() - CALL_TIMEOUT_SECONDS
        return [
            host
            for host, line in self._lines.items()
            if line.called_at < late and self.has_room(host)
        ]

    def record_duration(self, host: str, seconds: float) -> None:
        """Record how long a fetch kept its turn."""
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
            patience: seconds to wait for it. None to wait as long as it takes; 0 to be one of the
                few that do, or to line up.

        Raises:
            HostBusyError: there was none in time.
        """
        if host in self._held:
            return
        if patience == 0:
            # Who holds a turn must not wait for another one without end: two visits could wait for
            # each other.
            if not (self._turns.is_free(host) if self._held else self._turns.has_room(host)):
                raise HostBusyError(host)
            patience = None
        try:
            turn = await self._turns.take(host, patience)
        except TimeoutError:
            raise HostBusyError(host) from None
        self._stack.callback(turn.release)
        self._held[host] = asyncio.get_running_loop().time()
        self.hosts.append(host)

    def leave(self) -> None:
        """Give all turns back."""
        now = asyncio.get_running_loop().time()
        for host, since in self._held.items():
            self._turns.record_duration(host, now - since)
        self._held.clear()
        self._stack.close()
