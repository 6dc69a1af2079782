"""The steps of a long command. Each prints its time, and the output of its programs is in a log."""

import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_LINES_SHOWN = 40
STOP_SECONDS = 20
# Variables of this make that must not reach the programs it runs.
OUTER = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS"}


class StepError(Exception):
    """A program failed. The message is the end of its output."""


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print the name of a step, and when it ends, whether it succeeded and how long it took."""
    begun = time.monotonic()
    start_of_line = "\r" if sys.stdout.isatty() else ""
    if start_of_line:
        print(f"  {name:<12}", end="", flush=True)
    mark = "✗"
    try:
        yield
        mark = "✓"
    finally:
        print(f"{start_of_line}{mark} {name:<12}{time.monotonic() - begun:>6.1f} s", flush=True)


def run(
    root: Path,
    log: Path,
    *command: str,
    variables: Collection[str] = (),
    seconds: float | None = None,
) -> None:
    """Run a program in a repository, and append its output to a log.

    Args:
        root: the root of the repository.
        log: the path of the log, relative to `root`.
        command: the program and its arguments.
        variables: names of environment variables of this command that the program must not see.
        seconds: the time limit.

    Raises:
        StepError: the program failed or timed out.
    """
    hidden = OUTER.union(variables)
    path = root / log
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as output:
        begun = output.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command,
            cwd=root,
            env={name: value for name, value in os.environ.items() if name not in hidden},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            is_failed = process.wait(seconds) != 0
        except subprocess.TimeoutExpired:
            stop(process)
            output.write(f"Timed out after {seconds:g} seconds.\n".encode())
            is_failed = True
        except KeyboardInterrupt:
            stop(process)
            raise
        if is_failed:
            output.seek(begun)
            lines = output.read().decode(errors="replace").splitlines()
            failed = f"`{' '.join(command)}` failed. All output is in {log}."
            raise StepError("\n".join([*lines[-MAX_LINES_SHOWN:], failed]))


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a program; make passes the signal on to what it runs."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
