"""Compare how long a deploy holds requests: this application and the recipe of the Flask guide.

  python -m benchmarks.hold_window [--runs N]

Rehearses deploys of both in turn, each in its own environment, and prints a table. Every run
deploys a commit that changes a style sheet on top of the data of the previous run: there are assets
to publish, but nothing to migrate. Requires Node 20 or later, and the programs of `make rehearse`.
"""

import asyncio
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import harness
from rehearsal.lifecycle import rehearse
from rehearsal.report import Console, Report
from rehearsal.scene import Options

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "benchmarks" / "guide_recipe"
PARTS = ("start", "post_start", "deploy")


@dataclass
class Candidate:
    """A project and its measured hold windows."""

    name: str
    repository: Path
    style: str
    """The style sheet that each run changes."""
    holds: list[dict[str, float]] = field(default_factory=list)

    def row(self) -> str:
        """Return the medians as a row of a Markdown table."""
        parts = [statistics.median(hold.get(part, 0.0) for hold in self.holds) for part in PARTS]
        totals = [sum(hold.values()) for hold in self.holds]
        cells = [f"{part:.2f}" for part in parts]
        held = f"**{statistics.median(totals):.2f}**"
        cells = [self.name, *cells, held, f"{min(totals):.2f} to {max(totals):.2f}"]
        return f"| {' | '.join(cells)} |"


def git(repository: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Benchmark", "-c", "user.email=benchmark@example.com")
    subprocess.run(
        ["git", *identity, "-c", "commit.gpgsign=false", *arguments],
        cwd=repository,
        check=True,
        capture_output=True,
    )


def project(name: str, source: Path, directory: Path, style: str) -> Candidate:
    """Copy the tracked files of a directory to a new Git repository."""
    for file in tracked(source):
        target = directory / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / file, target, follow_symlinks=False)
    git(directory, "init", "--quiet")
    return Candidate(name, directory, style)


def tracked(directory: Path) -> list[str]:
    """Return the files in a directory that Git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=directory, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (directory / name).is_file()]


async def measure(candidate: Candidate, state: Path, run: int) -> None:
    """Commit a change, deploy it and record the hold window; run 0 is not recorded."""
    with (candidate.repository / candidate.style).open("a") as style:
        style.write(f"\n.run-{run} {{ color: red; }}\n")
    git(candidate.repository, "add", "--all")
    git(candidate.repository, "commit", "--quiet", "-m", f"Run {run}")

    async def complete(report: Report) -> None:
        pass

    name = candidate.repository.name
    # `force`: the recipe fails checks that do not matter here, such as a graceful shutdown.
    options = Options(candidate.repository, state, environment=name, force=True)
    report = await rehearse(options, Console(quiet=True), complete)
    failed = [stage.name for stage in report.stages if stage.name in PARTS and stage.result != "ok"]
    if report.hold is None or failed:
        for finding in report.findings:
            print(finding, file=sys.stderr)
        raise SystemExit(f"The deploy of {candidate.name} failed.")
    print(f"run {run}, {candidate.name}: {report.hold.seconds:.2f} s", file=sys.stderr)
    if run:  # the first run starts with an empty database and empty caches
        candidate.holds.append(report.hold.parts)


async def main() -> None:
    options = harness.parser(
        "hold_window", __doc__, runs=(5, "deploys of each project")
    ).parse_args()
    runs = options.runs
    with tempfile.TemporaryDirectory(prefix="hold-window-") as temporary:
        directory = Path(temporary)
        candidates = [
            project("this application", ROOT, directory / "this", "assets/css/main.scss"),
            project(
                "the guide's recipe",
                RECIPE,
                directory / "recipe",
                "assets/main.scss",
            ),
        ]
        for run in range(runs + 1):
            for candidate in candidates:
                await measure(candidate, directory / "state", run)
    print(
        f"Median of {runs} alternating deploys, in seconds ({platform.machine()},"
        f" Python {platform.python_version()}):\n"
    )
    print(f"| | {' | '.join(PARTS)} | total | range |")
    print(f"|---|{'---|' * (len(PARTS) + 2)}")
    for candidate in candidates:
        print(candidate.row())


if __name__ == "__main__":
    asyncio.run(main())
