"""Run the compared servers, and measure them.

The applications are in benchmarks/side_by_side/. The first run installs their packages into
build/side-by-side/. Each server is one process.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.load import LoadOptions, Measured, measure
from quart_upsun.server.serve import listen
from quart_upsun.testing.environments import virtual_environment

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "side_by_side"
PACKAGES = ROOT / "build" / "side-by-side"
POOL_SIZE = 8  # database connections of each server, and threads of the threaded servers
OURS = "this application (Quart, Hypercorn)"
OUR_COMMAND = [sys.executable, "-m", "app.server"]
# With 0 workers, Hypercorn serves in the main process.
BASELINE_COMMAND = [
    *(sys.executable, "-m", "hypercorn", "--workers", "0", "--log-level", "warning"),
    *("--bind", "127.0.0.1:PORT", "benchmarks.side_by_side.bare_app:app"),
]
GTHREAD = ("gthread", "--threads", str(POOL_SIZE))


@dataclass
class Server:
    """A running server."""

    name: str
    port: int
    process: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """Return the processes that handle requests, without the master of gunicorn."""
        return self.process.children() or [self.process]

    def cpu_seconds(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.workers())

    def megabytes(self) -> int:
        """Return the proportional set size, or the unique set size where there is none (macOS)."""
        infos = [each.memory_full_info() for each in self.workers()]
        return round(sum(getattr(each, "pss", each.uss) for each in infos) / 1e6)


@dataclass
class Series:
    """The measurements of one request to a server, in several rounds."""

    server: Server
    options: LoadOptions
    rounds: list[Measured] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU time per request in each round, in milliseconds."""

    async def measure(self, *, counts: bool = True) -> None:
        """Measure one round, and print its results.

        Args:
            counts: whether the results count; otherwise it is a warm-up.
        """
        before = self.server.cpu_seconds()
        measured = await measure(self.options)
        took = self.server.cpu_seconds() - before
        print(
            f"{self.server.name}, {self.options.path}: {measured.rate:.0f} requests/s,"
            f" p50 {measured.p50} ms, p99 {measured.p99} ms, {measured.errors} errors,"
            f" {measured.timeouts} timeouts; the load generator used {measured.cpu:.0%} of a core"
            f"{f'; first error: {measured.first_error}' if measured.errors else ''}",
            flush=True,
        )
        if counts:
            self.rounds.append(measured)
            # Approximate: assumes the same throughput during the warm-up.
            requests = measured.rate * (measured.seconds + self.options.warm_up)
            self.cpu.append(1000 * took / requests)

    def result(self) -> dict[str, float]:
        """Return the medians of the rounds, the maximum latency, and all errors and timeouts."""
        return {
            "requests_per_second": round(statistics.median(each.rate for each in self.rounds)),
            "p50_ms": round(statistics.median(each.p50 for each in self.rounds), 1),
            "p99_ms": round(statistics.median(each.p99 for each in self.rounds), 1),
            "longest_ms": round(max(each.longest for each in self.rounds)),
            "cpu_ms": round(statistics.median(self.cpu), 2),
            "errors": sum(each.errors for each in self.rounds),
            "timeouts": sum(each.timeouts for each in self.rounds),
        }


async def measure_in_turn(all_series: Sequence[Series], rounds: int) -> None:
    """Measure all series one after the other, in a warm-up and several rounds.

    So other activity of the machine affects all of them.
    """
    for number in range(rounds + 1):
        print(f"round {number}" if number else "warm-up", flush=True)
        for series in all_series:
            await series.measure(counts=number > 0)


def gunicorn(python: Path, application: str, *worker_class: str) -> list[str]:
    """Return the command of gunicorn with one worker, with the placeholder `PORT`."""
    return [
        *(str(python), "-m", "gunicorn", f"{application}()", "--workers", "1"),
        *("--worker-class", *worker_class, "--log-level", "warning", "--bind", "127.0.0.1:PORT"),
    ]


def flask_run(python: Path, application: str) -> list[str]:
    """Return the command of `flask run`, with the placeholder `PORT`."""
    return [
        *(str(python), "-m", "flask", "--app", application),
        *("run", "--no-debugger", "--no-reload", "--host", "127.0.0.1", "--port", "PORT"),
    ]


def uvicorn(python: Path, application: str) -> list[str]:
    """Return the command of uvicorn, with the placeholder `PORT`."""
    return [
        *(str(python), "-m", "uvicorn", application, "--loop", "uvloop", "--http", "httptools"),
        *("--no-access-log", "--log-level", "warning", "--host", "127.0.0.1", "--port", "PORT"),
    ]


def install() -> Path:
    """Create the virtual environment of the other servers; return its interpreter."""
    return virtual_environment(PACKAGES, PEERS / "requirements.txt")


@contextmanager
def serving(
    name: str,
    command: list[str],
    url: str,
    logs: Path,
    *,
    response: str = "",
    pool_size: int = POOL_SIZE,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run a server on a free port; kill it and its children on exit.

    Args:
        name: the name in the report.
        command: the command, with the placeholder `PORT`.
        url: the URL of the database.
        logs: the directory for its log and its home directory.
        response: the response body of the baseline.
        pool_size: database connections of this application.
        variables: further environment variables, which override those that all servers get.
    """
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    log = logs / f"{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [word.replace("PORT", str(port)) for word in command],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(logs),
                "PORT": str(port),
                "WEB_CONCURRENCY": "1",
                "DATABASE_URL": url,
                "DATABASE_POOL_SIZE": str(pool_size),
                "SECRET_KEY": "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0",
                "MAIL_URL": "console:",
                "RUN_JOBS": "false",
                "LOG_LEVEL": "warning",
                "SITE_NAME": "Benchmark",
                "RESPONSE": response,
                **(variables or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the parent, which stops the servers
        )
    try:
        wait_for(name, port, process, log)
        yield Server(name, port, psutil.Process(process.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except urllib.error.HTTPError:
            return  # any HTTP response means that the server is running
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"{name} did not start:\n{log.read_text()[-2000:]}")
