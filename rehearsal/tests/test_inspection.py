"""Findings about the load and about logs."""

from pathlib import Path
from typing import Any

import pytest

from rehearsal import inspection
from rehearsal.findings import Severity
from rehearsal.services import Databases
from rehearsal.services.base import Accounts


def numbers(**failures: int) -> dict[str, Any]:
    """Return a load's result: one answered GET and POST request, and `failures` of each."""
    kinds = {
        f"{method} /": {
            "answered": 1,
            "failed": sum(failures.values()),
            "failures": {name.removeprefix("status_"): count for name, count in failures.items()},
        }
        for method in ("GET", "POST")
    }
    return {
        "kinds": kinds,
        "asked": 200.0,
        "capacity": 400.0,
        "acknowledged": [("SELECT 1", "kept"), ("SELECT 0", "a missing row")],
    }


async def test_missing_acknowledged_write_is_lost(server_url: str, tmp_path: Path) -> None:
    databases = Databases(server_url, Accounts(["postgres"], {}), tmp_path)
    result, found = await inspection.judge_load(numbers(), databases, [], refuses_unsafe=False)
    assert (result["writes"], result["lost"], result["failed"]) == (2, 1, 0)
    (finding,) = found
    assert finding.severity is Severity.ERROR
    assert finding.excerpt == "a missing row"


@pytest.mark.parametrize(("refuses_unsafe", "failed", "refused"), [(False, 6, 0), (True, 4, 2)])
async def test_only_requests_that_cannot_be_held_may_be_refused(
    refuses_unsafe: bool, failed: int, refused: int
) -> None:
    """A GET with 503, or any request with 502, has always failed."""
    result, found = await inspection.judge_load(
        numbers(status_503=2, status_502=1), None, [], refuses_unsafe=refuses_unsafe
    )
    assert (result["failed"], result["refused"]) == (failed, refused)
    errors = [finding for finding in found if finding.severity is Severity.ERROR]
    assert [f"{failed} requests failed"] == [finding.message for finding in errors]


async def test_failed_requests_are_reported_with_logged_errors(tmp_path: Path) -> None:
    log = tmp_path / "clone.log"
    refused = '{"event": "request refused", "level": "warning"}'
    log.write_text(
        "\n".join(
            [
                *(f"ERROR number {number}" for number in range(9)),
                "GET /error/ 200 and no error",
                '{"event": "serving", "level": "info", "error": null}',
                refused,
            ]
        )
    )
    logs = [tmp_path / "never-started.log", log]
    _, found = await inspection.judge_load(numbers(status_503=2), None, logs, refuses_unsafe=False)
    first, second, *logged = found[0].excerpt.splitlines()
    assert (first, second) == ("GET /: 2 x 503", "POST /: 2 x 503")
    assert logged == [*(f"clone: ERROR number {n}" for n in range(5, 9)), f"clone: {refused}"]


async def test_reduced_load_is_reported() -> None:
    result, found = await inspection.judge_load(
        numbers() | {"acknowledged": [], "capacity": 100.0}, None, [], refuses_unsafe=False
    )
    assert result["failed"] == 0
    (note,) = found
    assert note.severity is Severity.NOTE
    for number in ("100", "50", "200"):
        assert number in note.message
