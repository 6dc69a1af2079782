"""The HTML report and what it is made from: costs, logs, and requests."""

from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest

from rehearsal.connections import Demand
from rehearsal.findings import Finding, Severity
from rehearsal.html_report import render
from rehearsal.recorder import MAX_LOG_LINES, Container, Costs, Recorder
from rehearsal.report import Console, Hold, Report, Stage
from rehearsal.tests.sample import CONFIG, commit, git, rehearse, sample, summary

VOID = {"meta"}


class Checker(HTMLParser):
    """Fails on tags that do not match, and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [str(value) for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str) -> tuple[str, Checker]:
    """Return the text of a well-formed page without external files."""
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.references == []
    assert "url(" not in page
    assert "<script" not in page
    return " ".join(checker.words), checker


def example() -> Report:
    app = Container("app", "HIGH_CPU", [10.0, 10.5], [100.0, 300.0], [0.1, 1.0], 0.6)
    return Report(
        "HEAD <b>",
        stages=[
            Stage("validate", 0.1, 0.0),
            Stage("build", 9.0, 0.1),
            Stage("start", 1.0, 10.0, "failed", "<script>alert(1)</script>"),
            Stage("deploy", 0.5, 11.0),
        ],
        findings=[
            Finding("start", "warn & go", severity=Severity.WARNING),
            Finding("start", "a < b", "effect", "fix", excerpt="</pre>", file="a.yaml", line=3),
        ],
        hold=Hold({"start": 1.0, "deploy": 0.5}, 3, 1.2, begun=10.0, ended=11.5),
        load={
            "requests": 4,
            "answered": 3,
            "failed": 1,
            "refused": 0,
            "median": 0.01,
            "timeline": [[10.0, 2, 0, 0.1], [10.25, 1, 1, 0.5]],
            "in_flight": 2,
            "instances": {"app": 3, "app-2": 1},
        },
        costs=Costs(
            [app],
            [(10.0, 7)],
            100,
            {"app": 50.0},
            {"app": 40.0},
            [(10.0, "app", "<i>")],
            reserved_connections=3,
            demand=Demand(instances=2, web=6, elsewhere=1, hooks=1, pool=None),
        ),
    )


CONNECTIONS = (
    "7 to PostgreSQL at most; a rolling deploy may need"
    " 2 x (2 instances x 6 + 1 of workers) + 1 of hooks = 27 of 97"
)


def test_page_is_complete_and_escaped() -> None:
    page = render(example())
    text, checker = read(page)
    for words in ("HEAD <b>", "a < b", "warn & go", "</pre>", "<i>", "a.yaml:3"):
        assert words in text, words
    assert "Hold window 1.50 s (shaded); 3 requests held" in text
    assert f"Connections: {CONNECTIONS} that the server here allows" in text
    assert "By instance: app 75 %, app-2 25 %" in text
    assert "2 more were in flight on the lost instance" in text
    assert "The image of app has 50 MB, +10.0 MB since the last rehearsal" in text
    assert "300 MB" in text
    assert "1 CPU, 384 MB" in text  # the smallest size of the profile that is large enough
    assert text.index("a < b") < text.index("warn & go")  # errors come first
    assert checker.tags.count("svg") == 4
    assert "prefers-color-scheme: dark" in page
    # Preparations are in the table only.
    assert text.count("build") == 1
    assert text.count("deploy") > 1


def test_text_has_instances_and_connections() -> None:
    output = StringIO()
    report = example()
    assert report.load is not None
    report.load |= {"seconds": 1.0, "rate": 4.0, "slowest": 0.5, "kinds": {}, "writes": 0}
    Console(output).close(report)
    text = output.getvalue()
    assert f"Connections {CONNECTIONS}\n" in text
    assert "Instances   app 75 %, app-2 25 %\n" in text
    assert "  2 more were in flight on the lost instance\n" in text


def test_page_of_a_rehearsal_that_stopped_early() -> None:
    report = Report("x", stages=[Stage("validate", 0.1)], findings=[Finding("validate", "no")])
    text, checker = read(render(report))
    assert "The deploy would fail." in text
    assert "svg" not in checker.tags


def test_container_that_is_too_small_is_a_warning() -> None:
    recorder = Recorder()
    recorder.costs = example().costs or Costs()
    (finding,) = recorder.judge()
    assert finding.severity is Severity.WARNING
    assert "300 MB" in finding.message
    assert "224 MB" in finding.message
    recorder.costs.containers[0].memory = [224.0]
    assert recorder.judge() == []


async def test_secrets_are_not_recorded(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.hide({"DATABASE_PASSWORD": "hunter22", "GREETING": "welcome", "API_KEY": "short"})
    log = tmp_path / "app.log"
    async with recorder.recording(tmp_path):
        log.write_text("+ export DB=postgresql://main:hunter22@db\nwelcome, short\nunfinished")
    assert [line for _, _, line in recorder.costs.log] == [
        "+ export DB=postgresql://main:•••@db",
        "welcome, short",
    ]
    async with recorder.recording(tmp_path):
        with log.open("a") as file:
            file.write("\n" + "x\n" * MAX_LOG_LINES)
    assert len(recorder.costs.log) == MAX_LOG_LINES
    assert recorder.costs.skipped == 3


@pytest.mark.requires("bwrap", "nginx", "dash")
async def test_costs_of_a_rehearsal(tmp_path: Path) -> None:
    config = CONFIG.replace(
        "    hooks:\n",
        "    workers:\n      queue:\n        commands:\n          start: exec sleep 600\n"
        "    hooks:\n",
    ).replace("cp -R built/. public/", "cp -R built/. public/\n        sleep 1.2; echo published")
    repository = sample(tmp_path / "repository", **{".upsun/config.yaml": config})
    state = tmp_path / "state"
    await rehearse(repository, state)
    commit(repository, {"large": "x" * 3_000_000})
    report = await rehearse(repository, state)
    costs = report.costs
    assert costs is not None, summary(report)
    assert {each.name for each in costs.containers} == {"web", "web-queue"}
    assert all(each.peak > 0 for each in costs.containers)
    assert costs.images["web"] - costs.previous_images["web"] == pytest.approx(2.9, abs=0.3)
    assert any(line == "published" for _, _, line in costs.log)
    text, _ = read(render(report))
    assert "published" in text
    assert git(repository, "status", "--porcelain") == ""
