"""A clone of the repository, as it lies here, to run its verbs in."""

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
# What an outer `make test` says to the makes below it; DATABASE_URL and its like are gone already.
OUTER = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "VENV", "ARGS"}


def share_packages(clone: Path) -> None:
    """Link the packages this test runs with into the clone, if `make` will find nothing to do."""
    for installed, lock, name in (
        (Path(sys.prefix) / "installed.txt", "requirements-dev.txt", ".venv"),
        (ROOT / "node_modules" / ".installed.json", "package-lock.json", "node_modules"),
    ):
        if not installed.exists() or installed.read_bytes() != (clone / lock).read_bytes():
            pytest.fail(f"what is installed is not what {lock} asks for: use `make test`")
        (clone / name).symlink_to(installed.parent)


def environment(**variables: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k not in OUTER}, **variables}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Running:
    """A command that runs in a clone, and what it has said."""

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
        """Wait for the end, and return the exit code."""
        code = self.process.wait(seconds)
        self._thread.join(SECONDS)
        return code

    def interrupt(self) -> int:
        """Do what Ctrl-C does in a terminal; return the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()


def left_in(clone: Path) -> list[psutil.Process]:
    """Return the processes that work in the clone or use its files."""
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
    """Hold that every process has ended; the init process may need a moment to bury them."""
    _, alive = psutil.wait_procs(left_in(clone), timeout=2)
    assert not alive


@contextmanager
def running(clone: Path, *command: str, **variables: str) -> Iterator[Running]:
    """Run a command; at the end kill whatever is left of it."""
    run = Running(clone, *command, **variables)
    try:
        yield run
    finally:
        # The group first: nothing of it can start anything any more.
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
        run.wait()
