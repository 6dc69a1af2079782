"""Formats of findings for other programs: JSON, GitHub annotations, and SARIF."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rehearsal.findings import Finding, Severity

GITHUB = {
    Severity.ERROR: "error",
    Severity.NOT_REHEARSED: "notice",
    Severity.WARNING: "warning",
    Severity.NOTE: "notice",
}
SARIF = {
    Severity.ERROR: "error",
    Severity.NOT_REHEARSED: "note",
    Severity.WARNING: "warning",
    Severity.NOTE: "note",
}


def as_json(finding: Finding) -> dict[str, Any]:
    """Return a finding as `--json` prints it."""
    return {**asdict(finding), "place": finding.place}


def sentence(finding: Finding) -> str:
    """Return the message with its consequence and fix, in one line."""
    parts = [finding.message]
    if finding.consequence:
        parts.append(f"effect: {finding.consequence}")
    if finding.fix:
        parts.append(f"fix: {finding.fix}")
    return "; ".join(parts)


def github(findings: Iterable[Finding]) -> str:
    """Return the workflow commands that annotate a pull request on GitHub.

    Source: "Workflow commands for GitHub Actions" in GitHub's documentation.
    """
    lines = []
    for finding in findings:
        values = {"file": finding.file, "line": finding.line, "title": "upsun-rehearse"}
        properties = ",".join(f"{k}={_escaped(str(v), ':,')}" for k, v in values.items() if v)
        message = _escaped(sentence(finding), "")
        lines.append(f"::{GITHUB[finding.severity]} {properties}::{message}")
    return "\n".join(lines)


def _escaped(text: str, special: str) -> str:
    for character in f"%\r\n{special}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def sarif(findings: Iterable[Finding]) -> str:
    """Return a SARIF 2.1.0 log, which code scanning services read."""
    results = []
    for finding in findings:
        result: dict[str, Any] = {
            "ruleId": finding.stage,
            "level": SARIF[finding.severity],
            "message": {"text": sentence(finding)},
        }
        if finding.file:
            location: dict[str, Any] = {"artifactLocation": {"uri": finding.file}}
            if finding.line:
                location["region"] = {"startLine": finding.line}
            result["locations"] = [{"physicalLocation": location}]
        results.append(result)
    driver = {
        "name": "upsun-rehearse",
        "rules": [{"id": stage} for stage in dict.fromkeys(r["ruleId"] for r in results)],
    }
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
    return json.dumps(log, indent=2)
