"""Measure what observing requests costs, with real servers: all off, the defaults, and all on.

  python -m benchmarks.observability [--rounds N] [--seconds S]

Starts an embedded PostgreSQL in a temporary directory, and the application three times, each as one
process: with `METRICS=0` and `REQUEST_LOG=off`; with its defaults; and with traces and metrics over
OTLP, error reports, `/metrics`, and a line in the log for each request. This process receives what
the last one sends, and checks that it sends it. The servers are measured in turn, in several
rounds, with 32 concurrent connections.

Prints a table and, as the last line, JSON: for each server and page the medians of the rounds, as
benchmarks/pages.py has them, and `relative`, the requests per second divided by those of the first
server.
"""

import argparse
import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.load import LoadOptions
from benchmarks.pages import PAGES, fetch, log_in, prepare
from benchmarks.servers import OUR_COMMAND, Series, measure_in_turn, serving

MEASURED = ("home", "members")
OFF, DEFAULTS, ALL = "all off", "defaults", "all on"
SETTLE_SECONDS = 6.0  # the SDK sends traces every five seconds


class Collector(ThreadingHTTPServer):
    """Receives OTLP and error reports, and counts the requests by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: Counter[str] = Counter()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received[self.path] += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector in a thread."""
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def variables(port: int) -> dict[str, dict[str, str]]:
    """Return the environment variables of each server.

    Args:
        port: the port of the collector.
    """
    return {
        OFF: {"METRICS": "0", "REQUEST_LOG": "off"},
        DEFAULTS: {},
        ALL: {
            "REQUEST_LOG": "all",
            "METRICS_TOKEN": "a-token-for-a-benchmark",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "SENTRY_DSN": f"http://key@127.0.0.1:{port}/1",
        },
    }


async def run(url: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    await prepare(url)
    servers: dict[str, dict[str, Series]] = {}
    with collecting() as collector, ExitStack() as stack:
        for name, own in variables(collector.server_port).items():
            server = stack.enter_context(
                serving(name, OUR_COMMAND, url, directory, variables={"LOG_LEVEL": "info", **own})
            )
            cookie = log_in(server)
            servers[name] = {}
            for page in MEASURED:
                path, needs_login = PAGES[page]
                headers = {"Cookie": cookie} if needs_login else {}
                body = fetch(server, path, headers)
                load = LoadOptions(server.port, path, headers, seconds=options.seconds, body=body)
                servers[name][page] = Series(server, load)
        in_turn = [pages[page] for page in MEASURED for pages in servers.values()]
        await measure_in_turn(in_turn, options.rounds)
        await asyncio.sleep(SETTLE_SECONDS)
        if not collector.received["/v1/traces"]:
            raise SystemExit(f"The collector received no traces, only {dict(collector.received)}.")
        megabytes = {name: pages[MEASURED[0]].server.megabytes() for name, pages in servers.items()}
    found = {
        name: {page: series.result() for page, series in pages.items()}
        for name, pages in servers.items()
    }
    for results in found.values():
        for page, result in results.items():
            base = found[OFF][page]["requests_per_second"]
            result["relative"] = round(result["requests_per_second"] / base, 3)
    return {"servers": found, "mb": megabytes, "received": dict(collector.received)}


def table(found: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| page | server | requests/s | relative | p50 | p99 | CPU per request | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for page in MEASURED:
        for name, pages in found["servers"].items():
            each = pages[page]
            lines.append(
                f"| {page} | {name} | {each['requests_per_second']:,} | {each['relative']:.3f}"
                f" | {each['p50_ms']} ms | {each['p99_ms']} ms | {each['cpu_ms']} ms"
                f" | {found['mb'][name]} MB |"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark."""
    parser = harness.parser(
        "benchmarks.observability",
        __doc__,
        rounds=(3, "rounds"),
        seconds=(5.0, "duration of each measurement"),
    )
    options = parser.parse_args()
    with harness.temporary_database("observability", durable=False) as (url, directory):
        found = asyncio.run(run(url, directory, options))
    print(table(found))
    failed = [
        f"no errors, {name} had {result['errors']} on the {page} page"
        for name, pages in found["servers"].items()
        for page, result in pages.items()
        if result["errors"]
    ]
    return harness.finish(found, failed)


if __name__ == "__main__":
    sys.exit(main())
