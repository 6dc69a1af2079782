"""Supervise several server processes on one socket."""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from quart_upsun.logging import get_logger

log = get_logger(__name__)

BACKOFF_SECONDS = 10.0  # the longest delay before a process is restarted
HEALTHY_AFTER_SECONDS = 30.0  # a process that has run this long resets the backoff

# The work of a process. Its arguments are a function that reports readiness, and a pipe that ends
# when the supervisor dies. It returns the exit code.
Work = Callable[[Callable[[], None], int], int]


@dataclass
class ServerProcess:
    """A slot for a process, which is reused when the process is restarted."""

    pid: int | None = None
    ready_pipe: int | None = None
    """Open until the process reports readiness or dies."""
    started: float = 0.0
    deaths: int = 0
    """Consecutive deaths, without a healthy run in between."""
    not_before: float = 0.0


class Supervisor:
    """Forks processes, restarts those that die, and forwards SIGTERM.

    If a process dies before any process was ready, the start has failed: all processes stop, and
        the
    exit code is 1. Later, a process that dies is restarted with backoff while the others serve.
    """

    def __init__(
        self, processes: int, listener: socket.socket, work: Work, *, stop_seconds: float
    ) -> None:
        self._slots = [ServerProcess() for _ in range(processes)]
        self._listener = listener
        self._work = work
        self._stop_seconds = stop_seconds
        self._stopping = False
        self._kill_at: float | None = None
        self._has_served = False
        self._exit_code = 0
        self._wakeup, self._wakeup_writer = socket.socketpair()
        # Only the supervisor holds the writing end, so the processes notice if it is killed.
        self._life, self._life_writer = os.pipe()

    def run(self) -> int:
        """Run the processes until stopped; return the exit code."""
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, _ignore)  # wakes select() through the wakeup socket
        while True:
            self._reap()
            if not self._stopping:
                self._spawn()
            elif not any(slot.pid for slot in self._slots):
                break
            elif self._kill_at is None:
                self._kill_at = time.monotonic() + self._stop_seconds
                # While it is open, the kernel queues connections that nobody accepts.
                self._listener.close()
                self._signal(signal.SIGTERM)
            elif time.monotonic() > self._kill_at:
                log.error("server processes killed")
                self._exit_code = 1
                self._kill_at += 1.0
                self._signal(signal.SIGKILL)
            self._wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # too late to change the exit code
        self._close_wakeup()
        return self._exit_code

    def _spawn(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.pid is None and now >= slot.not_before:
                ready, report = os.pipe()
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    os.close(ready)
                    self._run_child(report)
                os.close(report)
                slot.pid, slot.ready_pipe, slot.started = pid, ready, now

    def _run_child(self, report: int) -> None:
        """Run the work in the forked process; never returns."""
        code = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(
                signal.SIGTERM, lambda *_: os._exit(0)
            )  # until the work sets its own handler
            if self._stopping:  # the signal arrived before the line above
                os._exit(0)
            for slot in self._slots:
                if slot.ready_pipe is not None:
                    os.close(slot.ready_pipe)
            self._close_wakeup()
            os.close(self._life_writer)

            def report_ready() -> None:
                os.write(report, b"1")
                os.close(report)

            code = self._work(report_ready, self._life)
        except BaseException:
            log.exception("server process failed")
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _wait(self) -> None:
        """Wait for a signal, a readiness report, or the next restart or kill that is due."""
        now = time.monotonic()
        due = [slot.not_before for slot in self._slots if slot.pid is None]
        if self._kill_at is not None:
            due = [self._kill_at]
        timeout = max(0.0, min(due) - now) if due else None
        pipes = {slot.ready_pipe: slot for slot in self._slots if slot.ready_pipe is not None}
        wakeup = self._wakeup.fileno()
        readable, _, _ = select.select([wakeup, *pipes], [], [], timeout)
        for source in readable:
            if source == wakeup:
                self._wakeup.recv(4096)
            else:
                slot = pipes[source]
                if os.read(source, 1):  # empty: the process died, which SIGCHLD reports
                    self._has_served = True
                os.close(source)
                slot.ready_pipe = None

    def _reap(self) -> None:
        for slot in self._slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if pid == 0:
                continue
            code = os.waitstatus_to_exitcode(status)
            slot.pid = None
            if self._stopping:
                if code != 0:
                    self._exit_code = 1
                continue
            now = time.monotonic()
            slot.deaths = slot.deaths + 1 if now - slot.started < HEALTHY_AFTER_SECONDS else 1
            # The first restart is immediate.
            delay = 0.0 if slot.deaths == 1 else min(0.25 * 2**slot.deaths, BACKOFF_SECONDS)
            slot.not_before = now + delay
            if self._has_served:
                log.error("server process died", pid=pid, exit_code=code, restart_in_seconds=delay)
            else:
                log.error("server process failed to start", pid=pid, exit_code=code)
                self._exit_code = 1
                self._stopping = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # Only sets a flag, because a handler can interrupt any line, such as a fork.
        self._stopping = True

    def _close_wakeup(self) -> None:
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._wakeup_writer.close()

    def _signal(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.pid is not None:
                os.kill(slot.pid, number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal wakes `select` through the wakeup socket."""
