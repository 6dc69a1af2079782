"""Measure what is promised of speed, and write it into docs/performance.md: `make bench`.

  python -m benchmarks [--only NAME …] [--keep-readme]

Runs, one after the other: api (the JSON list beside Flask and FastAPI), growth (1,000 and a million
links), streams (5,000 open ones), jobs (with workers that are killed) and fetches (1,000 slow
pages). Each can be run by itself, `python -m benchmarks.api --help` and so on. All of them take
about ten minutes, and want a machine that does nothing else.

With --only the page stays as it is. Exit code 1: a promise was not kept, or a benchmark failed.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
# Those whose module exists: a feature that is removed takes its benchmark along.
NAMES = [
    name
    for name in ("api", "growth", "streams", "jobs", "fetches")
    if (Path(__file__).parent / f"{name}.py").exists()
]
PATIENCE = 20  # seconds for what a benchmark has started to end with it


def run(name: str) -> dict[str, Any] | None:
    """Run a benchmark, pass on what it says, and return its result; None if it has none."""
    print(f"== {name}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    last = ""
    try:
        assert process.stdout is not None  # noqa: S101
        for line in process.stdout:
            last = line.strip()
            # The result stands in the report, for people.
            if not last.startswith("{"):
                print(line, end="", flush=True)
        code = process.wait()
    except BaseException:
        # At Ctrl-C it has had the signal, too, and cleans up; at SIGTERM it has not.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    try:
        result = json.loads(last)
    except ValueError:
        return None
    if not isinstance(result, dict):
        return None
    return {**result, "ok": code == 0 and result.get("ok", True) is not False}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--keep-readme", action="store_true", help="only print the section")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, dict[str, Any]] = {}
    failed = []
    for name in options.only or NAMES:
        result = run(name)
        if result is None:
            failed.append(name)
        else:
            results[name] = result
    section = report.section(results)
    print(f"\n{section}\n")
    if not options.only and not options.keep_readme and not failed:
        PAGE.write_text(report.replaced(PAGE.read_text(), section))
    for name in failed:
        print(f"{name} has failed.", file=sys.stderr)
    broken = [name for name, result in results.items() if not result["ok"]]
    for name in broken:
        print(f"{name}: a promise was not kept.", file=sys.stderr)
    return 1 if failed or broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
