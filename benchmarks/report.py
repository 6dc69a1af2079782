"""What the benchmarks found, as a section of docs/performance.md."""

import os
import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from embedded_postgres import MAJOR

BEGIN = "<!-- written by `make bench` -->"
END = "<!-- end of what `make bench` has written -->"

Result = dict[str, Any]


def section(results: dict[str, Result]) -> str:
    """Return the text for the results there are, by the names of their benchmarks."""
    lines: dict[str, Callable[[Result], list[str]]] = {
        "streams": _streams,
        "jobs": _jobs,
        "fetches": _fetches,
    }
    parts = [_machine()]
    if "api" in results:
        parts += _peers(results["api"])
    budgets = [line for name in lines if name in results for line in lines[name](results[name])]
    if budgets:
        parts.append("\n".join(["| promised | measured | |", "|---|---|---|", *budgets]))
    if "growth" in results:
        parts.append(_growth(results["growth"]))
    return "\n\n".join(parts)


def replaced(readme: str, text: str) -> str:
    """Return the page with this text between the marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no marks for what `make bench` writes")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _machine() -> str:
    model = re.search(r"model name\s*: (.+)", _read("/proc/cpuinfo"))
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {psutil.cpu_count()} cores"
        f" ({model[1] if model else platform.machine()}), {memory:.0f} GiB,"
        f" {platform.system()} {platform.release().split('-')[0]},"
        f" Python {platform.python_version()}, PostgreSQL {MAJOR}; it and the load ran on the"
        f" same cores. Load of the machine at the end: {os.getloadavg()[0]:.1f}."
    )


def _peers(result: Result) -> list[str]:
    servers, ours = result["servers"], result["servers"][result["ours"]]
    rows = [
        "| one process | requests/s | p50 | p99 | longest | processor | memory | we are |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in servers.items():
        rate = each["requests_per_second"]
        ratio = "" if each is ours else f"{ours['requests_per_second'] / rate:.1f} times"
        rows.append(
            f"| {name} | {rate} | {each['p50_ms']} ms | {each['p99_ms']} ms |"
            f" {each['longest_ms']} ms | {each['cpu_ms']} ms | {each['mb']} MB | {ratio} |"
        )
    kept = _kept(ours["requests_per_second"] >= result["promised"])
    return [
        "`GET /api/v1/links?limit=20` with a token: two queries, 20 links as JSON. The peers do the"
        " same work on the same database (`benchmarks/side_by_side/`); the second row does none of"
        " it, and says what this machine has room for. Every answer is compared,"
        f" byte by byte. 32 connections ask. Promised: {result['promised']} requests a second;"
        f" {kept}.",
        "\n".join(rows),
    ]


def _streams(each: Result) -> list[str]:
    return [
        _row(
            f"{each['streams']:,} open event streams by one process",
            f"{each['kb_per_stream']} kB a stream, {each['connections']} connection that listens;"
            f" an event reaches one user's {each['shared']:,} streams in"
            f" {each['shared_ms']['p99']} ms (p99), pages answer in {each['about_ms']['p50']} ms"
            f" meanwhile (p99 {each['about_ms']['p99']} ms)",
            each,
        )
    ]


def _jobs(each: Result) -> list[str]:
    return [
        _row(
            f"{each['jobs']:,} jobs, workers killed in the middle: each effect exactly once",
            f"{each['kills']} killed: {each['missing']} missing, {each['doubles']} double;"
            f" {each['jobs_per_second']} jobs/s in all,"
            f" {each['undisturbed_per_second']} before the first kill",
            each,
        )
    ]


def _fetches(each: Result) -> list[str]:
    own, few = each["own"], each["few"]
    return [
        _row(
            f"{own['links']:,} pages of {own['page_s']:g} s, each on its own host, fetched by one"
            " worker in little more than the slowest",
            f"{own['seconds']} s, {own['at_once']} at once, {own['mb']} MB",
            each,
        ),
        _row(
            f"{few['links']:,} pages of {few['page_s']:g} s on {few['hosts']} hosts, two at a time"
            f" for each host, in little more than {few['least_s']:g} s",
            f"{few['seconds']} s, {few['jobs_failed']} given up",
            each,
        ),
    ]


def _growth(result: Result) -> str:
    rows = [
        f"| median | {result['few']:,} links | {result['many']:,} links |",
        "|---|---|---|",
        *(
            f"| {name} | {both['few']} ms | {both['many']} ms |"
            for name, both in result["medians_ms"].items()
        ),
    ]
    return "\n".join(
        [
            "How the cost of a query grows with the list, asked as the application does, in a"
            f" database with both users; {_kept(result['ok'])}:",
            "",
            *rows,
        ]
    )


def _row(promised: str, measured: str, result: Result) -> str:
    return f"| {promised} | {measured} | {_kept(result['ok'])} |"


def _kept(ok: bool) -> str:
    return "kept" if ok else "**not kept**"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
