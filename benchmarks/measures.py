"""Measure what the request log and the metrics cost, in this process and without a network.

  python -m benchmarks.measures [--rounds N] [--requests N]

Calls the application for a route that does nothing and for the home page, with both off, with the
defaults, and with a line for each request. The rounds take turns, and the fastest of each counts.
Prints JSON: microseconds per request, and the percentage that the defaults add.
"""

import asyncio
import os
import sys
import time
from typing import Any

from pydantic import SecretStr
from quart import Quart

from app import create_app
from app.settings import Settings
from benchmarks import harness
from quart_upsun.database.url import parse_database_url
from quart_upsun.logging import configure_logging
from quart_upsun.measure import Observer
from quart_upsun.metrics.event_log import EventLog
from quart_upsun.policy import no_rate_limit, no_store, public

PATHS = {"trivial": "/trivial", "home": "/"}
MODES = ("off", "default", "all")
MAX_ADDED_PERCENT = 2.0  # of the home page, by the defaults


def application() -> Quart:
    """Create the application with a route that does nothing. It has no database."""
    settings = Settings(
        database_url=parse_database_url("postgresql://nobody@127.0.0.1:9/none"),
        secret_key=SecretStr("for a benchmark"),
    )
    app = create_app(settings)

    @app.get("/trivial")
    @no_store
    @public
    @no_rate_limit("a benchmark")
    async def trivial() -> str:
        return "done"

    return app


async def request(app: Quart, path: str) -> None:
    """Send a request as a server does."""
    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"accept", b"text/html")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "extensions": {},
    }
    messages = [{"type": "http.request", "body": b"", "more_body": False}]
    statuses: list[int] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await asyncio.Event().wait()  # the client stays connected

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await asyncio.create_task(app(scope, receive, send))
    if statuses != [200]:
        raise RuntimeError(f"{path} returned {statuses}")


async def measure(rounds: int, requests: int) -> dict[str, dict[str, float]]:
    """Return microseconds per request by path and mode: the minimum of the rounds."""
    app = application()
    observers: list[Observer] = app.extensions["quart_upsun"].observers
    # Of the same application: two of them differ by more than the modes do.
    slow_log, collector = observers
    modes: dict[str, list[Observer]] = {
        "off": [],
        "default": [slow_log, collector],
        "all": [EventLog(0), collector],
    }
    fastest = {name: dict.fromkeys(MODES, float("inf")) for name in PATHS}
    with open(os.devnull, "w") as output:  # noqa: ASYNC230 opened once, before the measurement
        configure_logging("info", stream=output)
        await app.startup()
        for _ in range(rounds):
            for name, path in PATHS.items():
                for mode in MODES:
                    observers[:] = modes[mode]
                    started = time.perf_counter()
                    for _ in range(requests):
                        await request(app, path)
                    spent = 1e6 * (time.perf_counter() - started) / requests
                    fastest[name][mode] = min(fastest[name][mode], round(spent, 1))
        await app.shutdown()
        configure_logging("info")
    return fastest


def main() -> int:
    """Run the benchmark."""
    parser = harness.parser(
        "benchmarks.measures",
        __doc__,
        rounds=(40, "rounds of each mode"),
        requests=(100, "requests of a round"),
    )
    options = parser.parse_args()
    found = asyncio.run(measure(options.rounds, options.requests))
    added = {
        name: round(100 * (times["default"] / times["off"] - 1), 1) for name, times in found.items()
    }
    missed = (
        [f"at most {MAX_ADDED_PERCENT} % of the home page, measured {added['home']} %"]
        if added["home"] > MAX_ADDED_PERCENT
        else []
    )
    return harness.finish({"microseconds": found, "added_percent": added}, missed)


if __name__ == "__main__":
    sys.exit(main())
