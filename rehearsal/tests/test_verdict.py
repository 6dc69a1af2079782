"""The verdict of a rehearsal and its exit code."""

import io
from pathlib import Path

import pytest

from rehearsal.findings import Finding, Severity, Verdict, verdict
from rehearsal.report import Console, Report, Stage
from rehearsal.tests.sample import CONFIG, rehearse, sample, summary

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
NOT_REHEARSED = Severity.NOT_REHEARSED


@pytest.mark.parametrize(
    ("severities", "strict", "expected", "code"),
    [
        ([], False, Verdict.SUCCEEDS, 0),
        ([WARNING, NOTE], False, Verdict.SUCCEEDS, 0),
        ([WARNING, NOTE], True, Verdict.FAILS, 1),
        ([NOTE], True, Verdict.SUCCEEDS, 0),
        ([NOT_REHEARSED, WARNING], False, Verdict.NOT_REHEARSED, 2),
        ([NOT_REHEARSED, WARNING], True, Verdict.FAILS, 1),
        ([NOT_REHEARSED, ERROR], False, Verdict.FAILS, 1),
    ],
)
def test_verdict_follows_from_severities(
    severities: list[Severity], strict: bool, expected: Verdict, code: int
) -> None:
    findings = [Finding("build", "something", severity=severity) for severity in severities]
    assert verdict(findings, strict=strict) is expected
    assert Report("x", findings=findings, strict=strict).exit_code == code


def test_report_names_what_was_not_rehearsed_and_what_was() -> None:
    report = Report(
        "x",
        stages=[Stage("validate"), Stage("services", result="partial"), Stage("start")],
        findings=[Finding("services", "nothing runs mongodb", severity=NOT_REHEARSED)],
    )
    output = io.StringIO()
    Console(output).close(report)
    text = output.getvalue()
    assert "not rehearsed: [services] nothing runs mongodb" in text
    assert "Rehearsed   validate, start" in text
    assert "not rehearsed completely" in text
    assert report.document()["verdict"] == "not-rehearsed"
    assert report.document()["ok"] is False


@pytest.mark.parametrize(("verbose", "strict"), [(False, False), (True, False), (False, True)])
def test_errors_come_first_and_warnings_are_counted(verbose: bool, strict: bool) -> None:
    report = Report("x", strict=strict)
    for severity in (NOTE, WARNING, WARNING, ERROR):
        report.findings.append(Finding("start", f"a {severity.value}", severity=severity))
    output = io.StringIO()
    Console(output, verbose=verbose).close(report)
    lines = output.getvalue().split("\n")
    assert lines[1] == "error: [start] a error"
    folded = [line for line in lines if "--verbose" in line]
    if verbose:
        assert lines[2:5] == ["warning: [start] a warning"] * 2 + ["note: [start] a note"]
        assert folded == []
    elif strict:
        assert folded == ["1 note; add --verbose to see them"]
    else:
        assert folded == ["2 warnings, 1 note; add --verbose to see them"]
    assert "Findings: 1 error, 2 warnings, 1 note." in lines[-2]


@pytest.mark.requires("bwrap", "nginx", "dash")
async def test_service_that_cannot_run_here_does_not_end_the_rehearsal(tmp_path: Path) -> None:
    config = CONFIG.replace(
        "    mounts:", '    relationships:\n      search: "search:elasticsearch"\n    mounts:'
    ).replace("routes:", 'services:\n  search:\n    type: "elasticsearch:8.5"\nroutes:')
    repository = sample(tmp_path / "repository", **{".upsun/config.yaml": config})
    report = await rehearse(repository, tmp_path / "state")
    assert report.verdict is Verdict.NOT_REHEARSED, summary(report)
    assert {"start", "deploy", "probe", "stop"} <= set(report.rehearsed)
    assert "services" not in report.rehearsed
