"""Run the benchmarks and write the results to the documentation (`make bench`).

  python -m benchmarks [--scaling | --only NAME …] [--no-write]

The benchmarks run in this order:

  pages    three HTML pages, compared with Flask and FastAPI
  api      the JSON list of links, compared with Flask and FastAPI
  growth   query times with 1,000 and 1,000,000 links
  streams  5,000 open event streams
  jobs     10,000 background jobs while workers are killed
  fetches  1,000 slow pages
  process  what one server process does: requests of each kind, memory, connections
  workers  jobs per second with 1 to 8 workers
  fanout   notifications to 2 to 32 listening connections
  limits   the table of the rate limits with up to a million clients
  searches lists and searches with up to a million links

The results are in docs/performance.md, and those of streams and of the last five in
docs/scaling.md and benchmarks/scaling.json.

To run one of them with options, see `python -m benchmarks.api --help` and so on. All of them take
about 25 minutes, and `--scaling` about ten. Run them on an otherwise idle machine.

Exit codes: 0 success, 1 a benchmark failed or missed its target.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report, scaling

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
# Removing a feature also removes its benchmark, so list only the modules that exist.
NAMES = [
    name
    for name in (
        *("pages", "api", "growth", "streams", "jobs", "fetches"),
        *(name for name in scaling.NAMES if name != "streams"),
    )
    if (Path(__file__).parent / f"{name}.py").exists()
]
STOP_SECONDS = 20  # grace period for a benchmark to stop its child processes


def run(name: str) -> dict[str, Any] | None:
    """Run a benchmark and print its output; return its result, or None if it failed."""
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
            # Do not print the JSON result: the report shows it.
            if not last.startswith("{"):
                print(line, end="", flush=True)
        code = process.wait()
    except BaseException:
        # With Ctrl-C the child has already received the signal; with SIGTERM it has not.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
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
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        metavar="NAME",
        help="run only these benchmarks, and do not change the documentation",
    )
    which.add_argument(
        "--scaling", action="store_true", help="run only what docs/scaling.md needs, and change it"
    )
    parser.add_argument(
        "--no-write", action="store_true", help="print the results, do not change any file"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, dict[str, Any]] = {}
    failed = []
    for name in options.only or (scaling.NAMES if options.scaling else NAMES):
        result = run(name)
        if result is None:
            failed.append(name)
        else:
            results[name] = result
    section = report.section(results)
    print(f"\n{section}\n")
    if not options.only and not options.no_write and not failed:
        if not options.scaling:
            PAGE.write_text(report.replace_section(PAGE.read_text(), section))
            for file, svg in report.charts(results).items():
                (PAGE.parent / report.IMAGES / file).write_text(svg)
        if results.keys() >= set(scaling.NAMES):
            scaling.write(scaling.data_of(results, report.machine()))
    for name in failed:
        print(f"{name} failed; see the output above.", file=sys.stderr)
    missed = [name for name, result in results.items() if not result["ok"]]
    for name in missed:
        print(f"{name} missed its target.", file=sys.stderr)
    return 1 if failed or missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
