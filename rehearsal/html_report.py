"""The report as one HTML file without external files, for light and dark screens."""

import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rehearsal.findings import Finding, Severity
from rehearsal.load import SLOT_SECONDS
from rehearsal.recorder import Container, Costs
from rehearsal.report import SEVERITIES, VERDICTS, Report, Stage, counted, shares_of

# Stages before the deploy, which take most of the time and are not in the timeline.
PREPARATION = ("validate", "build", "freeze", "services", "front", "environment")
WIDTH = 860  # of the charts, in pixels
MARGIN = 170  # for the labels on the left
ROW = 22  # the height of a row of the timeline
CHART = 110  # the height of a chart
SERIES = ("s1", "s2", "s3", "s4", "s5")

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2024; --dim: #667085; --line: #d9dde3;
  --card: #f6f7f9; --red: #c4320a; --green: #12805c; --yellow: #9a6700; --cyan: #0b7285;
  --s1: #2563eb; --s2: #d97706; --s3: #059669; --s4: #9333ea; --s5: #db2777; --hold: #f5c2c733; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --text: #e6e8eb; --dim: #98a2b3;
  --line: #343a41; --card: #1d2126; --red: #ff8a65; --green: #4ccf9b; --yellow: #e3b341;
  --cyan: #4cc9e0; --s1: #6ea8fe; --s2: #f4a940; --s3: #4ccf9b; --s4: #c9a2ff; --s5: #ff8ac0;
  --hold: #ff8a6522; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 960px; padding: 24px; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 22px; margin: 0 } h2 { font-size: 17px; margin: 32px 0 8px }
p { margin: 4px 0 } .dim { color: var(--dim) }
.verdict { border-left: 6px solid; padding: 8px 16px; background: var(--card); margin: 16px 0 }
.red { color: var(--red) } .green { color: var(--green) } .yellow { color: var(--yellow) }
.cyan { color: var(--cyan) }
article { border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px; margin: 8px 0 }
article p { overflow-wrap: anywhere }
code, pre { font: 12.5px/1.45 ui-monospace, monospace }
pre { background: var(--card); padding: 8px; overflow-x: auto; margin: 8px 0 0 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--text); font-size: 12px }
svg .dim { fill: var(--dim) } svg .grid { stroke: var(--line) }
svg .ok { fill: var(--s1) } svg .failed { fill: var(--red) } svg .partial { fill: var(--cyan) }
svg .hold { fill: var(--hold) } svg .answered { fill: var(--s3) } svg polyline { fill: none;
  stroke-width: 1.6 } svg .limit { stroke: var(--red); stroke-dasharray: 5 4 }
""" + "\n".join(f".{s} {{ color: var(--{s}) }} svg .{s} {{ stroke: var(--{s}) }}" for s in SERIES)


def render(report: Report, *, now: datetime | None = None) -> str:
    """Return the page."""
    text, colour = VERDICTS[report.verdict]
    made = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    counts = counted(report.findings) or "none"
    body = [
        f"<h1>Rehearsal of {_text(report.title)}</h1>",
        f'<p class="dim">{made}, {report.seconds:.1f} s'
        + (f", replaces {_text(report.previous)}" if report.previous else "")
        + "</p>",
        f'<div class="verdict {colour}"><strong>{_text(text)}</strong>'
        f" Findings: {_text(counts)}.</div>",
        *(f"<p>{_text(line)}</p>" for line in report.seen),
        _findings(report),
        _timeline(report),
        _load(report),
        _costs(report),
        _stages(report.stages),
        _log(report.costs),
    ]
    title = f"{text} {report.title}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _findings(report: Report) -> str:
    first = {Severity.ERROR, Severity.NOT_REHEARSED}
    findings = sorted(report.findings, key=lambda finding: finding.severity.rank)
    folded = [finding for finding in findings if finding.severity not in first]
    parts = [_finding(finding) for finding in findings if finding.severity in first]
    if folded:
        details = "".join(map(_finding, folded))
        parts.append(f"<details><summary>{counted(folded)}</summary>{details}</details>")
    return f"<h2>Findings</h2>{''.join(parts)}" if parts else ""


def _finding(finding: Finding) -> str:
    colour = SEVERITIES[finding.severity]
    place = f" <code>{_text(finding.place)}</code>" if finding.place else ""
    parts = [
        f'<p><strong class="{colour}">{finding.severity.label}</strong>'
        f' <span class="dim">{_text(finding.stage)}</span>{place}</p>',
        f"<p>{_text(finding.message)}</p>",
    ]
    if finding.consequence:
        parts.append(f'<p><span class="dim">Effect:</span> {_text(finding.consequence)}</p>')
    if finding.fix:
        parts.append(f'<p><span class="dim">Fix:</span> {_text(finding.fix)}</p>')
    if finding.excerpt:
        parts.append(f"<pre>{_text(finding.excerpt)}</pre>")
    return f"<article>{''.join(parts)}</article>"


class _Axis:
    """Maps seconds to horizontal positions."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, max(end, begin + 0.1)

    def at(self, seconds: float) -> float:
        part = (seconds - self.begin) / (self.end - self.begin)
        return MARGIN + min(max(part, 0.0), 1.0) * (WIDTH - MARGIN - 10)

    def ticks(self) -> list[float]:
        """Return about eight round numbers of seconds since the start of the axis."""
        length = self.end - self.begin
        step = next((s for s in (0.5, 1, 2, 5, 10, 20, 60, 120, 300) if length / s <= 8), 600)
        return [n * step for n in range(int(length / step) + 1)]

    def grid(self, height: float) -> str:
        """Return the vertical lines and their labels."""
        parts = []
        for tick in self.ticks():
            x = self.at(self.begin + tick)
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height:.0f}"/>'
                f'<text class="dim" x="{x:.1f}" y="{height + 14:.0f}" text-anchor="middle">'
                f"{tick:g} s</text>"
            )
        return "".join(parts)


def _deploy(report: Report) -> tuple[list[Stage], _Axis] | None:
    """Return the stages of the deploy itself, and the axis of their time."""
    stages = [
        stage
        for stage in sorted(report.stages, key=lambda stage: stage.begun)
        if not stage.name.rpartition(": ")[2].startswith(PREPARATION)
    ]
    if not stages:
        return None
    end = max(stage.begun + stage.seconds for stage in stages)
    return stages, _Axis(stages[0].begun, end)


def _timeline(report: Report) -> str:
    found = _deploy(report)
    if found is None:
        return ""
    stages, axis = found
    # All stages overlap the load, which has a chart of its own.
    rows = [stage for stage in stages if stage.name != "load"]
    height = ROW * len(rows) + 6
    parts = [_hold(report, axis, height), axis.grid(height)]
    for number, stage in enumerate(rows):
        x, y = axis.at(stage.begun), ROW * number + 4
        width = max(axis.at(stage.begun + stage.seconds) - x, 2.0)
        parts.append(
            f'<text x="{MARGIN - 8}" y="{y + 13}" text-anchor="end">{_text(stage.name)}</text>'
            f'<rect class="{stage.result}" x="{x:.1f}" y="{y}" width="{width:.1f}"'
            f' height="{ROW - 6}" rx="2"><title>{_text(stage.name)}: {stage.seconds:.2f} s'
            f" {_text(stage.detail)}</title></rect>"
        )
    hold = report.hold
    note = "<p>No requests were held.</p>"
    if hold is not None and hold.parts:
        held = f"; {hold.waited} requests held" if hold.waited else ""
        note = (
            f"<p>Hold window {hold.seconds:.2f} s (shaded){held}"
            f"{f', the longest for {hold.longest:.2f} s' if hold.waited else ''}.</p>"
        )
    return f"<h2>Timeline of the deploy</h2>{note}{_svg(height + 20, parts)}"


def _hold(report: Report, axis: _Axis, height: float) -> str:
    """Return the shaded area of the time in which requests were held."""
    hold = report.hold
    if hold is None or not hold.parts:
        return ""
    begin, end = axis.at(hold.begun), axis.at(hold.ended)
    return (
        f'<rect class="hold" x="{begin:.1f}" y="0" width="{end - begin:.1f}" height="{height}">'
        "<title>requests are held</title></rect>"
    )


def _svg(height: float, parts: Iterable[str]) -> str:
    content = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{content}</svg>'


def _load(report: Report) -> str:
    found = _deploy(report)
    slots = (report.load or {}).get("timeline", [])
    if report.load is None or found is None or not slots:
        return ""
    _, axis = found
    most = max(answered + failed for _, answered, failed, _ in slots) or 1
    slowest = max(slot[3] for slot in slots) or 1
    step = axis.at(axis.begin + SLOT_SECONDS) - axis.at(axis.begin)
    parts = [_hold(report, axis, CHART), axis.grid(CHART)]
    for begun, answered, failed, _ in slots:
        y = float(CHART)
        for name, count in (("answered", answered), ("failed", failed)):
            height = CHART * count / most
            y -= height
            if count:
                parts.append(
                    f'<rect class="{name}" x="{axis.at(begun):.1f}" y="{y:.1f}"'
                    f' width="{max(step - 0.5, 1):.1f}" height="{height:.1f}">'
                    f"<title>{count} {name}</title></rect>"
                )
    line = [(axis.at(slot[0]), CHART - CHART * slot[3] / slowest) for slot in slots]
    parts.append(_line(line, "s2"))
    parts.append(_scale(f"{most / SLOT_SECONDS:.0f} per second", f"slowest {slowest:.2f} s"))
    load = report.load
    shares = shares_of(load.get("instances", {}))
    by_instance = f" By instance: {_text(', '.join(shares))}." if len(shares) > 1 else ""
    cut = load.get("in_flight", 0)
    lost = f" {cut} more were in flight on the lost instance." if cut else ""
    return (
        "<h2>Requests</h2>"
        f"<p>{load['requests']} requests: {load['answered']} answered, {load['failed']} failed,"
        f" {load['refused']} refused while others were held,"
        f" median {load['median'] * 1000:.0f} ms.{lost}{by_instance}"
        ' Bars: requests, in <span class="red">red</span> those without the expected answer;'
        ' <span class="s2">line</span>: the slowest one.</p>' + _svg(CHART + 20, parts)
    )


def _line(points: Sequence[tuple[float, float]], series: str) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{series}" points="{text}"/>'


def _scale(*labels: str) -> str:
    return "".join(
        f'<text class="dim" x="{MARGIN - 8}" y="{12 + 15 * n}" text-anchor="end">{label}</text>'
        for n, label in enumerate(labels)
    )


def _costs(report: Report) -> str:
    costs = report.costs
    if costs is None or not (costs.containers or costs.images):
        return ""
    rows = "".join(_container_row(container) for container in costs.containers)
    table = (
        '<table><tr><th>container</th><th class="number">memory</th><th class="number">CPU time'
        '</th><th class="number">connections</th><th>profile</th>'
        '<th class="number">first deploy</th><th>smallest size</th></tr>'
        f"{rows}</table>"
        if rows
        else ""
    )
    notes = []
    if costs.connections:
        notes.append(f"Connections: {costs.describe_connections()} that the server here allows.")
    for name, size in costs.images.items():
        last = costs.previous_images.get(name)
        change = f", {size - last:+.1f} MB since the last rehearsal" if last else ""
        notes.append(f"The image of {name} has {size:.0f} MB{change}.")
    found = _deploy(report)
    charts = ""
    if found is not None:
        memory = {each.name: (each.times, each.memory) for each in costs.containers}
        cpu = {each.name: (each.times, each.cpu) for each in costs.containers}
        charts = _chart("Memory", memory, "MB", found[1])
        charts += _chart("Processor", cpu, "CPUs", found[1])
    text = "".join(f"<p>{_text(note)}</p>" for note in notes)
    return f"<h2>Costs</h2>{table}{text}{charts}"


def _container_row(container: Container) -> str:
    size = container.smallest_size
    fits = f"{size[0]:g} CPU, {size[1]} MB" if size else "none is large enough"
    over = ' class="number red"' if container.peak > container.default_size else ' class="number"'
    return (
        f"<tr><td>{_text(container.name)}</td><td{over}>{container.peak:.0f} MB</td>"
        f'<td class="number">{container.cpu_seconds:.1f} s</td>'
        f'<td class="number">{container.connections.connections}</td>'
        f"<td>{container.profile}</td>"
        f'<td class="number">{container.default_size} MB</td><td>{fits}</td></tr>'
    )


def _chart(
    title: str, values: Mapping[str, tuple[list[float], list[float]]], unit: str, axis: _Axis
) -> str:
    """Return a chart with a line for each container: its times and its values."""
    most = max((value for _, own in values.values() for value in own), default=0.0)
    if not most:
        return ""
    parts = [axis.grid(CHART), _scale(f"{most:.3g} {unit}")]
    names = []
    for number, (name, (times, own)) in enumerate(values.items()):
        series = SERIES[number % len(SERIES)]
        points = [
            (axis.at(seconds), CHART - CHART * value / most)
            for seconds, value in zip(times, own, strict=True)
        ]
        parts.append(_line(points, series))
        names.append(f'<span class="{series}">{_text(name)}</span>')
    return f"<p><strong>{title}</strong> {', '.join(names)}</p>{_svg(CHART + 20, parts)}"


def _stages(stages: Sequence[Stage]) -> str:
    rows = "".join(
        f'<tr><td>{_text(stage.name)}</td><td class="number">{stage.seconds:.2f} s</td>'
        f"<td{' class=red' if stage.result == 'failed' else ''}>{stage.result}</td>"
        f"<td>{_text(stage.detail)}</td></tr>"
        for stage in stages
    )
    return f"<h2>Stages</h2><table>{rows}</table>" if rows else ""


def _log(costs: Costs | None) -> str:
    if costs is None or not costs.log:
        return ""
    lines = "\n".join(
        f"{seconds:7.1f} s  {_text(name):<16} {_text(line)}" for seconds, name, line in costs.log
    )
    more = f" (the last ones; {costs.skipped} more)" if costs.skipped else ""
    return (
        f"<h2>Log</h2><details><summary>{len(costs.log)} lines{more}</summary>"
        f"<pre>{lines}</pre></details>"
    )
