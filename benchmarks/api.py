"""Compare GET /api/v1/links?limit=20 in this application, Flask and FastAPI.

  python -m benchmarks.api [--rounds N] [--seconds S] [--alone]

Starts an embedded PostgreSQL in a temporary directory, and each server as one process on the same
database, which has a user with 1,000 links and an access token. The servers are measured in turn,
in several rounds, so that other activity on the machine affects all of them. The load generator
(benchmarks/load.py) uses 32 concurrent connections.

The other applications are in benchmarks/side_by_side/. The first run installs their packages into
build/side-by-side/. A baseline, a Quart view that returns a constant, shows the upper limit of the
machine.

Prints the results and, as the last line, JSON. For each server it contains requests per second, the
50th and 99th percentile of the latency (ms), the maximum latency (ms), CPU time per request (ms)
and resident memory (MB). The values are medians of the rounds; the maximum is that of all rounds.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from app.user.tokens import access_tokens as tokens
from benchmarks.filling import fill, migrate
from benchmarks.load import LoadOptions, Measured, measure
from embedded_postgres import create_database, postgres
from quart_upsun.server.serve import listen

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "side_by_side"
PACKAGES = ROOT / "build" / "side-by-side"
PATH = "/api/v1/links?limit=20"
LINKS = 1000
POOL_SIZE = 8  # database connections of each server, and threads of the threaded servers
CONNECTIONS = 32
OURS = "this application (Quart, Hypercorn)"
BASELINE = "baseline: constant response (Quart, Hypercorn)"
TARGET = 600  # requests per second
INSERT_TOKEN = """
    INSERT INTO access_tokens (user_id, name, digest, scopes, expires_at)
    VALUES ($1, 'benchmark', $2, ARRAY['links:read'], now() + interval '1 day')
"""


@dataclass
class Server:
    """A running server and its measurements."""

    name: str
    port: int
    process: psutil.Process
    body: str = ""
    rounds: list[Measured] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU time per request in each round, in milliseconds."""

    def result(self) -> dict[str, float]:
        return {
            "requests_per_second": round(statistics.median(each.rate for each in self.rounds)),
            "p50_ms": round(statistics.median(each.p50 for each in self.rounds), 1),
            "p99_ms": round(statistics.median(each.p99 for each in self.rounds), 1),
            "longest_ms": round(max(each.longest for each in self.rounds)),
            "cpu_ms": round(statistics.median(self.cpu), 2),
            "mb": round(sum(each.memory_info().rss for each in self.workers()) / 1e6),
        }

    def workers(self) -> list[psutil.Process]:
        """Return the processes that handle requests, without the master of gunicorn."""
        return self.process.children() or [self.process]

    def cpu_seconds(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.workers())


def baseline_command() -> list[str]:
    """Return the command of the baseline, with the placeholder `PORT`."""
    # With 0 workers, Hypercorn serves in the main process.
    hypercorn = ["-m", "hypercorn", "--workers", "0", "--log-level", "warning"]
    view = "benchmarks.side_by_side.bare_app:app"
    return [sys.executable, *hypercorn, "--bind", "127.0.0.1:PORT", view]


def peer_commands(python: Path) -> dict[str, list[str]]:
    """Return the command of each other server, with the placeholder `PORT`."""
    flask = "benchmarks.side_by_side.flask_app:create_app"
    fastapi = "benchmarks.side_by_side.fastapi_app:app"
    threads = "benchmarks.side_by_side.fastapi_threads_app:app"
    gunicorn = [*("--workers", "1", "--worker-class", "gthread"), *("--threads", str(POOL_SIZE))]
    uvicorn = [
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
        *("--host", "127.0.0.1", "--port", "PORT"),
    ]
    return {
        "FastAPI, uvicorn": [str(python), "-m", "uvicorn", fastapi, *uvicorn],
        "FastAPI in threads, uvicorn": [str(python), "-m", "uvicorn", threads, *uvicorn],
        "Flask, gunicorn gthread": [
            *(str(python), "-m", "gunicorn", f"{flask}()", *gunicorn),
            *("--log-level", "warning", "--bind", "127.0.0.1:PORT"),
        ],
        "Flask, `flask run`": [
            *(str(python), "-m", "flask", "--app", flask),
            *("run", "--no-debugger", "--no-reload", "--host", "127.0.0.1", "--port", "PORT"),
        ],
    }


def install() -> Path:
    """Create the virtual environment of the other servers; return its interpreter."""
    python = PACKAGES / "bin" / "python"
    requirements, installed = PEERS / "requirements.txt", PACKAGES / "installed.txt"
    # Written last, so that an interrupted installation is repeated.
    if not installed.exists() or installed.read_text() != installation_key(requirements):
        print("Installing Flask and FastAPI into build/side-by-side/", flush=True)
        shutil.rmtree(PACKAGES, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(PACKAGES)], check=True)
        subprocess.run(
            [*(str(python), "-m", "pip", "install", "-qq", "--require-hashes"), "-r", requirements],
            env={
                **os.environ,
                "PIP_USER": "0",
                "PIP_ROOT_USER_ACTION": "ignore",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            },
            check=True,
        )
        installed.write_text(installation_key(requirements))
    return python


def installation_key(requirements: Path) -> str:
    return f"{sys.version}\n{requirements.read_text()}"


@contextmanager
def serving(
    name: str, command: list[str], url: str, logs: Path, *, response: str = ""
) -> Iterator[Server]:
    """Run a server on a free port; kill it and its children on exit.

    Args:
        name: the name in the report.
        command: the command, with the placeholder `PORT`.
        url: the URL of the database.
        logs: the directory for its log and its home directory.
        response: the response body of the baseline.
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
                "DATABASE_POOL_SIZE": str(POOL_SIZE),
                "SECRET_KEY": "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0",
                "MAIL_URL": "console:",
                "RUN_JOBS": "false",
                "LOG_LEVEL": "warning",
                "RESPONSE": response,
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


def fetch_expected(server: Server, token: str) -> Any:
    """Send one request; store its body as the expected one, and return the parsed JSON."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{PATH}", headers={"X-API-Key": token}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        server.body = response.read().decode()
    data = json.loads(server.body)
    if len(data["items"]) != 20:
        raise SystemExit(f"{server.name} returned {len(data['items'])} links, expected 20.")
    for item in data["items"]:  # timestamps may be formatted differently
        for name in ("created_at", "updated_at", "fetched_at"):
            item[name] = datetime.fromisoformat(item[name].replace("Z", "+00:00"))
    return data


async def one_round(server: Server, token: str, seconds: float, warm_up: float) -> None:
    load = LoadOptions(
        port=server.port,
        path=PATH,
        headers={"X-API-Key": token},
        connections=CONNECTIONS,
        warm_up=warm_up,
        seconds=seconds,
        body=server.body,
    )
    before = server.cpu_seconds()
    measured = await measure(load)
    took = server.cpu_seconds() - before
    server.rounds.append(measured)
    # Approximate: assumes the same throughput during the warm-up.
    server.cpu.append(1000 * took / (measured.rate * (measured.seconds + warm_up)))
    print(
        f"{server.name}: {measured.rate:.0f} requests/s, p50 {measured.p50} ms,"
        f" p99 {measured.p99} ms; the load generator used {measured.cpu:.0%} of a core",
        flush=True,
    )


async def run(options: argparse.Namespace) -> dict[str, Any]:
    others = {
        BASELINE: baseline_command(),
        **({} if options.alone else peer_commands(install())),
    }
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="api-")))
        postgres_url = stack.enter_context(postgres(directory / "postgres"))
        url = await create_database(postgres_url, "benchmark")
        migrate(url)
        users = await fill(url, {"ada": LINKS})
        token = tokens.generate_token()
        connection = await asyncpg.connect(url)
        await connection.execute(INSERT_TOKEN, users["ada"], tokens.hash_token(token))
        await connection.close()
        own = [sys.executable, "-m", "app.server"]
        servers = [stack.enter_context(serving(OURS, own, url, directory))]
        expected = fetch_expected(servers[0], token)
        response = servers[0].body
        for name, command in others.items():
            starting = serving(name, command, url, directory, response=response)
            servers.append(stack.enter_context(starting))
            if fetch_expected(servers[-1], token) != expected:
                raise SystemExit(f"{name} returned a different response.")
        for number in range(options.rounds + 1):
            print(f"round {number}" if number else "warm-up", flush=True)
            for server in servers:
                await one_round(server, token, options.seconds, 0.5)
                if number == 0:
                    server.rounds.clear()
                    server.cpu.clear()
        results = {server.name: server.result() for server in servers}
    return {"servers": results, "ours": OURS, "target": TARGET}


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each target that was missed."""
    rate = result["servers"][OURS]["requests_per_second"]
    return [] if rate >= TARGET else [f"{TARGET} requests/s, measured {rate}"]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.api",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="number of rounds (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        metavar="S",
        help="duration of each measurement (default: %(default)s)",
    )
    parser.add_argument(
        "--alone", action="store_true", help="measure only this application and the baseline"
    )
    result = asyncio.run(run(parser.parse_args()))
    for name, measured in result["servers"].items():
        print(f"{name}: {measured}")
    missed = missed_targets(result)
    for target in missed:
        print(f"Target missed: {target}")
    print(json.dumps(result | {"ok": not missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
