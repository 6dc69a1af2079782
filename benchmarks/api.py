"""GET /api/v1/links?limit=20 with a token: this application beside Flask and FastAPI.

  python -m benchmarks.api [--rounds N] [--seconds S] [--alone]

Starts the embedded PostgreSQL in a directory that is removed at the end, and every server as one
process on the same database: a user with 1,000 links, and a token. The servers take turns, several
times, so that what else happens on the machine hits all alike; the load (benchmarks/load.py) keeps
32 connections busy. The peers are in benchmarks/side_by_side/, and their packages are installed
into build/side-by-side/ at the first run. `--alone` leaves them out. In any case there is a view
that does nothing at all, in Quart and Hypercorn as well: what is possible on this machine now.

Prints a line for people for each result, and at the end one line of JSON: for each server requests
a second, the 50th and 99th percentile and the longest wait in milliseconds, milliseconds of
processor time that the server took for one request, and resident memory in MB; the medians of the
rounds, and the longest wait of all of them.
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
from benchmarks.load import Measured, Order, measure
from embedded_postgres import create_database, postgres
from quart_upsun.server.serve import listen

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "side_by_side"
PACKAGES = ROOT / "build" / "side-by-side"
PATH = "/api/v1/links?limit=20"
LINKS = 1000
POOL = 8  # connections to the database, for each; and threads of those that have threads
CONNECTIONS = 32
OURS = "this application (Quart, Hypercorn)"
BARE = "Quart, Hypercorn: the same answer, without the work"
PROMISED = 600  # requests a second
ADD_TOKEN = """
    INSERT INTO access_tokens (user_id, name, digest, scopes, expires_at)
    VALUES ($1, 'benchmark', $2, ARRAY['links:read'], now() + interval '1 day')
"""


@dataclass
class Server:
    """A server that runs, and what was measured of it."""

    name: str
    port: int
    process: psutil.Process
    body: str = ""
    rounds: list[Measured] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Milliseconds for one request, of each round."""

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
        """The processes that answer: without gunicorn's master, which only watches."""
        return self.process.children() or [self.process]

    def cpu_seconds(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.workers())


def bare() -> list[str]:
    """Return how the view without work is started, on `PORT`."""
    # No workers beside it: the process serves itself.
    hypercorn = ["-m", "hypercorn", "--workers", "0", "--log-level", "warning"]
    view = "benchmarks.side_by_side.bare_app:app"
    return [sys.executable, *hypercorn, "--bind", "127.0.0.1:PORT", view]


def commands(python: Path) -> dict[str, list[str]]:
    """Return how each peer is started, on `PORT`."""
    flask = "benchmarks.side_by_side.flask_app:create_app"
    fastapi = "benchmarks.side_by_side.fastapi_app:app"
    threads = "benchmarks.side_by_side.fastapi_threads_app:app"
    gunicorn = [*("--workers", "1", "--worker-class", "gthread"), *("--threads", str(POOL))]
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
    """Give the peers a virtual environment of their own; return its interpreter."""
    python = PACKAGES / "bin" / "python"
    requirements, installed = PEERS / "requirements.txt", PACKAGES / "installed.txt"
    # Written last, so that a set-up that was interrupted does not count.
    if not installed.exists() or installed.read_text() != wanted(requirements):
        print("Installing the peers' packages into build/side-by-side/", flush=True)
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
        installed.write_text(wanted(requirements))
    return python


def wanted(requirements: Path) -> str:
    return f"{sys.version}\n{requirements.read_text()}"


@contextmanager
def serving(
    name: str, command: list[str], url: str, logs: Path, *, answer: str = ""
) -> Iterator[Server]:
    """Run a server on a free port, and end it and its children.

    Args:
        name: for people.
        command: with `PORT` where its number belongs.
        url: of the database.
        logs: where it may write.
        answer: what the view without work says.
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
                "DATABASE_POOL_SIZE": str(POOL),
                "SECRET_KEY": "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0",
                "MAIL_URL": "console:",
                "RUN_JOBS": "false",
                "LOG_LEVEL": "warning",
                "ANSWER": answer,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only us, who end all the others
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
            return  # it answers, if only that there is no such page
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"{name} does not serve:\n{log.read_text()[-2000:]}")


def look(server: Server, token: str) -> Any:
    """Ask once; keep the body, to which all others are compared, and return what it says."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{PATH}", headers={"X-API-Key": token}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        server.body = response.read().decode()
    said = json.loads(server.body)
    if len(said["items"]) != 20:
        raise SystemExit(f"{server.name} answers with {len(said['items'])} links")
    for item in said["items"]:  # there are several ways to write a moment
        for name in ("created_at", "updated_at", "fetched_at"):
            item[name] = datetime.fromisoformat(item[name].replace("Z", "+00:00"))
    return said


async def one_round(server: Server, token: str, seconds: float, warm_up: float) -> None:
    order = Order(
        port=server.port,
        path=PATH,
        headers={"X-API-Key": token},
        connections=CONNECTIONS,
        warm_up=warm_up,
        seconds=seconds,
        body=server.body,
    )
    before = server.cpu_seconds()
    measured = await measure(order)
    took = server.cpu_seconds() - before
    server.rounds.append(measured)
    # The warm-up is as fast as the rest, nearly.
    server.cpu.append(1000 * took / (measured.rate * (measured.seconds + warm_up)))
    print(
        f"{server.name}: {measured.rate:.0f} requests/s, p50 {measured.p50} ms,"
        f" p99 {measured.p99} ms; the load took {measured.cpu:.0%} of a core",
        flush=True,
    )


async def run(options: argparse.Namespace) -> dict[str, Any]:
    others = {BARE: bare(), **({} if options.alone else commands(install()))}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="api-")))
        postgres_url = stack.enter_context(postgres(directory / "postgres"))
        url = await create_database(postgres_url, "benchmark")
        migrate(url)
        users = await fill(url, {"ada": LINKS})
        token = tokens.generate_token()
        connection = await asyncpg.connect(url)
        await connection.execute(ADD_TOKEN, users["ada"], tokens.hash_token(token))
        await connection.close()
        own = [sys.executable, "-m", "app.server"]
        servers = [stack.enter_context(serving(OURS, own, url, directory))]
        said = [look(servers[0], token)]
        answer = servers[0].body
        for name, command in others.items():
            starting = serving(name, command, url, directory, answer=answer)
            servers.append(stack.enter_context(starting))
            said.append(look(servers[-1], token))
        if any(each != said[0] for each in said):
            raise SystemExit("The servers do not answer the same.")
        for number in range(options.rounds + 1):
            print(f"round {number}" if number else "to warm up", flush=True)
            for server in servers:
                await one_round(server, token, options.seconds, 0.5)
                if number == 0:
                    server.rounds.clear()
                    server.cpu.clear()
        results = {server.name: server.result() for server in servers}
    return {"servers": results, "ours": OURS, "promised": PROMISED}


def broken(result: dict[str, Any]) -> list[str]:
    """Return the promises that were not kept."""
    rate = result["servers"][OURS]["requests_per_second"]
    return [] if rate >= PROMISED else [f"{PROMISED} requests a second; it was {rate}"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="%(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="%(default)s")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    result = asyncio.run(run(parser.parse_args()))
    for name, measured in result["servers"].items():
        print(f"{name}: {measured}")
    promises = broken(result)
    for promise in promises:
        print(f"Not kept: {promise}")
    print(json.dumps(result | {"ok": not promises}))
    return 1 if promises else 0


if __name__ == "__main__":
    sys.exit(main())
