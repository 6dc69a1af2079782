"""Limit concurrent fetches per host, with a waiting line of jobs for each host.

A turn is one of the slots for concurrent fetches from a host. A few jobs wait for a turn in the
worker. All others are postponed, so that the worker can run other jobs, and join the host's waiting
line. When a fetch ends, `job_turns` calls the next job in the line: it makes that job due.

This is the state of one process. A called job may run in another process. If it does not arrive
here in time, the next one is called. A job that is never called becomes due by itself.
"""

import asyncio
import random
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from typing import Self
from weakref import WeakValueDictionary

from quart_upsun.time_limits import pause_time_limit

MAX_FETCHES_PER_HOST = 2  # concurrent fetches in each process
# Jobs per host that wait for a turn in the worker, so that a free turn is used at once.
WAITING = 2
# A postponed job that is not called becomes due after a time between these.
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 5.0, 3600.0
CALL_TIMEOUT_SECONDS = 1.0  # how long a called job may take to arrive


class HostBusyError(Exception):
    """The host has no free turn for another fetch.

    Attributes:
        host: the name of the host.
    """

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host


class WaitingLine:
    """The queue of jobs that wait for one host.

    Higher priorities go first. Within a priority, owners are served round-robin, so that a single
    link does not wait behind an import of another user.
    """

    def __init__(self) -> None:
        self.seconds = 1.0  # how long a fetch holds its turn, on average
        self.called_at = float("-inf")
        self._jobs: dict[tuple[int, int], dict[int, None]] = {}  # by priority and owner

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def add(self, job: int, priority: int, owner: int) -> None:
        """Add a job behind the others of its owner, unless it is in the line already."""
        self._jobs.setdefault((priority, owner), {}).setdefault(job)

    def pop(self) -> int:
        """Remove and return the next job."""
        key = max(self._jobs, key=lambda each: each[0])  # `max` returns the first of equals
        jobs = self._jobs.pop(key)
        job = next(iter(jobs))
        del jobs[job]
        if jobs:
            self._jobs[key] = jobs
        return job


class Turns:
    """The turns at all hosts, and the jobs that wait for them."""

    def __init__(self) -> None:
        # A semaphore is removed when no fetch holds it or waits for it.
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._waiting: Counter[str] = Counter()
        self._lines: dict[str, WaitingLine] = {}

    def __len__(self) -> int:
        """Return the number of hosts that are being fetched from or waited for."""
        return len(self._hosts)

    def is_free(self, host: str) -> bool:
        """Tell whether the host has a free turn."""
        turn = self._hosts.get(host)
        return turn is None or not turn.locked()

    def waiting(self, host: str) -> int:
        """Return the number of fetches in this process that wait for a turn at the host."""
        return self._waiting[host]

    def has_room(self, host: str) -> bool:
        """Tell whether a job may fetch from the host now, or wait for a turn in the worker."""
        return self.is_free(host) or self.waiting(host) < WAITING

    async def take(self, host: str, seconds: float | None) -> asyncio.Semaphore:
        """Wait for a turn at a host, and return the semaphore to release it with.

        Args:
            host: the name of the host.
            seconds: how long to wait. None for no limit.

        Raises:
            TimeoutError: no turn became free in time.
        """
        turn = self._hosts.setdefault(host, asyncio.Semaphore(MAX_FETCHES_PER_HOST))
        if not turn.locked():
            await turn.acquire()  # does not wait
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
        """Return when a job that is postponed now becomes due if it is not called."""
        line = self._lines.get(host, WaitingLine())
        # Twice the expected wait, so that jobs are normally called before.
        wait = 2 * (len(line) + MAX_FETCHES_PER_HOST) * line.seconds / MAX_FETCHES_PER_HOST
        bounded = min(max(wait, MIN_WAIT_SECONDS), MAX_WAIT_SECONDS)
        return timedelta(seconds=bounded * random.uniform(1.0, 1.25))  # noqa: S311

    def line_up(self, host: str, job: int, *, priority: int = 0, owner: int = 0) -> None:
        """Add a job to the waiting line of a host. See `WaitingLine`."""
        self._lines.setdefault(host, WaitingLine()).add(job, priority, owner)

    def next_in_line(self, host: str) -> int | None:
        """Remove and return the next job in the waiting line of a host. None if it is empty."""
        line = self._lines.get(host)
        if line is None:
            return None
        job = line.pop()
        line.called_at = asyncio.get_running_loop().time()
        if not len(line):
            del self._lines[host]
        return job

    def idle(self) -> list[str]:
        """Return the hosts that have room and waiting jobs, and whose called job did not arrive."""
        latest = asyncio.get_running_loop().time() - CALL_TIMEOUT_SECONDS
        return [
            host
            for host, line in self._lines.items()
            if line.called_at < latest and self.has_room(host)
        ]

    def record_duration(self, host: str, seconds: float) -> None:
        """Update the moving average of how long a fetch holds its turn."""
        if line := self._lines.get(host):
            line.seconds += (seconds - line.seconds) / 8


class Visit:
    """The turns that one fetch holds: at the URL's host, and at the hosts it is redirected to.

    Attributes:
        hosts: all hosts that the fetch has held a turn at.
    """

    def __init__(self, turns: Turns) -> None:
        self.hosts: list[str] = []
        self._turns = turns
        self._held: dict[str, float] = {}  # host -> start time
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    async def enter(self, host: str, max_wait: float | None) -> None:
        """Take a turn at a host, unless this visit holds one already.

        Args:
            host: the name of the host.
            max_wait: how long to wait, in seconds. None for no limit. 0 for jobs, which wait only
                if few others do.

        Raises:
            HostBusyError: the host had no free turn in time.
        """
        if host in self._held:
            return
        if max_wait == 0:
            # A visit with a turn must not wait for another one, or two visits could deadlock.
            if not (self._turns.is_free(host) if self._held else self._turns.has_room(host)):
                raise HostBusyError(host)
            max_wait = None
        try:
            turn = await self._turns.take(host, max_wait)
        except TimeoutError:
            raise HostBusyError(host) from None
        self._stack.callback(turn.release)
        self._held[host] = asyncio.get_running_loop().time()
        self.hosts.append(host)

    def leave(self) -> None:
        """Release all turns."""
        now = asyncio.get_running_loop().time()
        for host, since in self._held.items():
            self._turns.record_duration(host, now - since)
        self._held.clear()
        self._stack.close()
