"""Run commands in a copy of the working tree."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import psutil
import pytest

from app.settings import ROOT

SECONDS = 90
# Set by an outer `make test` for nested makes. DATABASE_URL and the like are already unset.
OUTER = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "VENV", "ARGS"}


def share_packages(clone: Path) -> None:
    """Link the installed packages into the clone; fail if they do not match the lock files."""
    for installed, lock, name in (
        (Path(sys.prefix) / "installed.txt", "requirements-dev.txt", ".venv"),
        (ROOT / "node_modules" / ".installed.json", "package-lock.json", "node_modules"),
    ):
        if not installed.exists() or installed.read_bytes() != (clone / lock).read_bytes():
            pytest.fail(f"the installed packages do not match {lock}: run `make test`")
        (clone / name).symlink_to(installed.parent)


def environment(**variables: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k not in OUTER}, **variables}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Running:
    """A command running in a clone, and its output so far."""

    def __init__(self, clone: Path, *command: str, **variables: str) -> None:
        self.clone = clone
        self.port = variables.setdefault("PORT", free_port())
        self.process = subprocess.Popen(
            command,
            cwd=clone,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self._thread = Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.output += line

    def wait_for(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + SECONDS
        while self.output.count(text) < times:
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no {text!r} in:\n{self.output}")
            time.sleep(0.05)

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for the command to exit; return the exit code."""
        code = self.process.wait(seconds)
        self._thread.join(SECONDS)
        return code

    def interrupt(self) -> int:
        """Send SIGINT to the process group, as Ctrl-C does; return the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()


def processes_in(clone: Path) -> list[psutil.Process]:
    """Return the running processes whose directory or arguments are in the clone."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            directory = process.cwd()
        except psutil.Error:
            continue
        places = [directory, *(process.info["cmdline"] or [])]
        if any(Path(place).is_relative_to(clone) for place in places):
            found.append(process)
    return found


def assert_nothing_left(clone: Path) -> None:
    """Assert that no process is left; init may need a moment to reap them."""
    _, alive = psutil.wait_procs(processes_in(clone), timeout=15)
    assert not alive


@contextmanager
def running(clone: Path, *command: str, **variables: str) -> Iterator[Running]:
    """Run a command; kill its process group on exit from the context."""
    run = Running(clone, *command, **variables)
    try:
        yield run
    finally:
        # Kill the whole group at once, so that no member can start another process.
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
        run.wait()
