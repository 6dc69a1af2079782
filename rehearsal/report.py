"""The console output of a rehearsal: progress while it runs, and the report at the end."""

import itertools
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from rehearsal.findings import Finding, Severity, Verdict, verdict
from rehearsal.formats import as_json

if TYPE_CHECKING:
    from rehearsal.recorder import Costs

COLOURS = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}
SIGNS = {"ok": ("✓", "green"), "failed": ("✗", "red"), "partial": ("~", "cyan")}
SEVERITIES = {
    Severity.ERROR: "red",
    Severity.NOT_REHEARSED: "cyan",
    Severity.WARNING: "yellow",
    Severity.NOTE: "dim",
}
VERDICTS = {
    Verdict.SUCCEEDS: ("The deploy would succeed.", "green"),
    Verdict.FAILS: ("The deploy would fail.", "red"),
    Verdict.NOT_REHEARSED: ("The deploy was not rehearsed completely.", "cyan"),
}
TICK_SECONDS = 0.1


@dataclass
class Stage:
    """The result of one stage of the lifecycle."""

    name: str
    seconds: float = 0.0
    begun: float = 0.0
    """Seconds since the start of the rehearsal."""
    result: str = "ok"
    """`ok`, `failed`, or `partial` if a part of it could not be rehearsed."""
    detail: str = ""


@dataclass
class Hold:
    """How long the router held requests, in seconds."""

    parts: dict[str, float] = field(default_factory=dict)
    """The duration of each stage during which requests were held."""
    waited: int = 0
    """The number of requests that were held."""
    longest: float = 0.0
    """How long the longest of them was held."""
    begun: float = 0.0
    """Since the start of the rehearsal."""
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


@dataclass
class Report:
    """The result of a rehearsal."""

    title: str
    stages: list[Stage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    hold: Hold | None = None
    load: dict[str, Any] | None = None
    seen: list[str] = field(default_factory=list)
    """What a visitor saw during the deploy, in order."""
    address: str = ""
    """The router's URL, if the application keeps running."""
    instances: list[str] = field(default_factory=list)
    """The URL of each instance, then."""
    seconds: float = 0.0
    previous: str = ""
    """The release that was replaced."""
    strict: bool = False
    """Whether warnings count as errors."""
    costs: "Costs | None" = None

    @property
    def verdict(self) -> Verdict:
        return verdict(self.findings, strict=self.strict)

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code

    @property
    def has_errors(self) -> bool:
        """Return whether something failed so far, apart from warnings."""
        return verdict(self.findings) is Verdict.FAILS

    @property
    def rehearsed(self) -> list[str]:
        """Return the names of the stages that were rehearsed completely."""
        return [stage.name for stage in self.stages if stage.result == "ok"]

    def document(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        return {
            "title": self.title,
            "previous": self.previous,
            "ok": self.exit_code == 0,
            "verdict": self.verdict.value,
            "strict": self.strict,
            "seconds": round(self.seconds, 3),
            "stages": [asdict(stage) for stage in self.stages],
            "hold": self.hold and {**asdict(self.hold), "seconds": round(self.hold.seconds, 3)},
            "load": self.load,
            "costs": self.costs and self.costs.document(),
            "seen": self.seen,
            "findings": [as_json(finding) for finding in self.findings],
            "address": self.address,
            "instances": self.instances,
        }


def counted(findings: Iterable[Finding]) -> str:
    """Return the numbers of findings, such as `1 error, 2 warnings`."""
    counts = Counter(finding.severity for finding in findings)
    parts = []
    for severity in SEVERITIES:
        count = counts[severity]
        plural = "s" if count > 1 and severity is not Severity.NOT_REHEARSED else ""
        if count:
            parts.append(f"{count} {severity.label}{plural}")
    return ", ".join(parts)


def shares_of(requests: Mapping[str, int]) -> list[str]:
    """Return the share of the requests that each instance received, such as `app-2 34 %`."""
    total = sum(requests.values())
    return [f"{name} {number / total:.0%}".replace("%", " %") for name, number in requests.items()]


class Console:
    """Write progress and the report as text, with a live progress line on a terminal."""

    def __init__(
        self, stream: TextIO = sys.stdout, *, quiet: bool = False, verbose: bool = False
    ) -> None:
        self.stream = stream
        self.quiet = quiet
        self.verbose = verbose
        self.moving = stream.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        self._colours = stream.isatty() and "NO_COLOR" not in os.environ
        self._spinner = itertools.cycle("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
        self._shown = 0.0
        self._stage: tuple[str, float] | None = None

    def paint(self, text: str, *colours: str) -> str:
        if not self._colours or not text:
            return text
        return f"\x1b[{';'.join(COLOURS[colour] for colour in colours)}m{text}\x1b[0m"

    def say(self, text: str = "") -> None:
        """Print a permanent line."""
        if not self.quiet:
            self._wipe()
            print(text, file=self.stream, flush=True)

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Show a stage as running."""
        self._stage = (name, time.monotonic())
        self.show("")
        try:
            yield
        finally:
            self._stage = None
            self._wipe()

    def show(self, line: str) -> None:
        """Show a line of the running stage's output in the progress line."""
        now = time.monotonic()
        if not self.moving or self._stage is None or now - self._shown < TICK_SECONDS:
            return
        self._shown = now
        name, begun = self._stage
        width = shutil.get_terminal_size().columns
        clean = "".join(character for character in line if character.isprintable())
        head = f"{next(self._spinner)} {name:<12} {now - begun:5.1f} s  "
        print(f"\r\x1b[2K{head}{clean[: max(0, width - len(head) - 1)]}", end="", file=self.stream)
        self.stream.flush()

    def ended(self, stage: Stage, findings: list[Finding]) -> None:
        """Print a finished stage; the report at the end has its findings."""
        sign, colour = SIGNS[stage.result]
        took = f"{stage.seconds:5.1f} s"
        name = f"{stage.name:<12}"
        errors = [finding.message for finding in findings if finding.severity is Severity.ERROR]
        counts = counted(findings)
        parts = [errors[0] if errors else stage.detail, f"({counts})" if counts else ""]
        text = "  ".join(part for part in parts if part)
        self.say(f"{self.paint(sign, colour)} {self.paint(name, 'bold')} {took}  {text}")

    def finding(self, finding: Finding, *, stage: bool = False) -> None:
        """Print one finding, perhaps with its stage."""
        head = f"{finding.severity.label}:"
        place = f"{finding.place}: " if finding.place else ""
        head = self.paint(head, SEVERITIES[finding.severity])
        where = f"[{finding.stage}] " if stage else ""
        self.say(f"{head} {where}{place}{finding.message}")
        for label, text in (("effect", finding.consequence), ("fix", finding.fix)):
            if text:
                self.say(f"       {self.paint(f'{label:<6}', 'dim')}  {text}")
        for line in finding.excerpt.splitlines():
            self.say(f"       {self.paint('│', 'dim')} {line}")

    def verdict(self, text: str, colour: str, findings: list[Finding], end: str = "") -> None:
        """Print the last line of a report."""
        text = self.paint(text, colour, "bold")
        self.say(f"{text} Findings: {counted(findings) or 'none'}.{end}")

    def close(self, report: Report) -> None:
        """Print the findings and the summary: errors first, warnings and notes as a count."""
        self.say()
        shown = set(SEVERITIES) if self.verbose else {Severity.ERROR, Severity.NOT_REHEARSED}
        if report.strict:
            shown.add(Severity.WARNING)
        for severity in SEVERITIES:
            for finding in report.findings:
                if finding.severity is severity and severity in shown:
                    self.finding(finding, stage=True)
        folded = counted(f for f in report.findings if f.severity not in shown)
        if folded:
            self.say(f"{self.paint(folded, 'yellow')}; add --verbose to see them")
        if report.findings:
            self.say()
        if report.hold is not None:
            self._hold(report.hold)
        if report.load is not None:
            self._load(report.load)
        if report.costs is not None:
            self._costs(report.costs)
        for line in report.seen:
            self.say(f"  {line}")
        if report.verdict is Verdict.NOT_REHEARSED:
            self.say(f"Rehearsed   {', '.join(report.rehearsed) or 'nothing'}")
        text, colour = VERDICTS[report.verdict]
        self.verdict(text, colour, report.findings, f" Duration: {report.seconds:.1f} s.")

    def _hold(self, hold: Hold) -> None:
        if not hold.parts:
            self.say(f"Hold window {self.paint('none', 'bold')}: no requests were held")
            return
        parts = " + ".join(f"{name} {seconds:.2f}" for name, seconds in hold.parts.items())
        held = f"; {hold.waited} requests held, the longest for {hold.longest:.2f} s"
        self.say(
            f"Hold window {self.paint(f'{hold.seconds:.2f} s', 'bold')} = {parts}"
            f"{held if hold.waited else ''}"
        )

    def _load(self, load: dict[str, Any]) -> None:
        failed = self.paint(f"{load['failed']} failed", "red" if load["failed"] else "green")
        self.say(
            f"Load        {load['requests']} requests in {load['seconds']:.1f} s"
            f" ({load['rate']:.0f} per second): {load['answered']} answered, {failed},"
            f" slowest {load['slowest']:.2f} s, median {load['median'] * 1000:.0f} ms"
        )
        for kind, numbers in load["kinds"].items():
            line = f"  {kind:<28} {numbers['answered']:>6} answered"
            if numbers["failed"]:
                line += f", {self.paint(str(numbers['failed']) + ' failed', 'red')}"
                line += (
                    f" ({', '.join(f'{n} x {what}' for what, n in numbers['failures'].items())})"
                )
            self.say(f"{line}, slowest {numbers['slowest']:.2f} s")
        if cut := load.get("in_flight"):
            self.say(f"  {cut} more were in flight on the lost instance")
        shares = shares_of(load.get("instances", {}))
        if len(shares) > 1:
            self.say(f"Instances   {', '.join(shares)}")
        if load["writes"]:
            lost = load["lost"]
            verdict = (
                self.paint(f"{lost} lost", "red") if lost else self.paint("none lost", "green")
            )
            self.say(f"Writes      {load['writes']} acknowledged, {verdict}")

    def _costs(self, costs: "Costs") -> None:
        parts = [f"{each.name} {each.peak:.0f} MB" for each in costs.containers if each.peak]
        for name, size in costs.images.items():
            last = costs.previous_images.get(name)
            change = f" ({size - last:+.0f})" if last and round(size - last) else ""
            parts.append(f"image {name} {size:.0f} MB{change}")
        if parts:
            self.say(f"Costs       {', '.join(parts)}")
        if costs.connections:
            self.say(f"Connections {costs.describe_connections()}")

    def _wipe(self) -> None:
        if self.moving:
            print("\r\x1b[2K", end="", file=self.stream, flush=True)
