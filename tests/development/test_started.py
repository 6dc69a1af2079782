"""Applications as `make start` makes them: four choices of features, checked and rehearsed."""

import subprocess
import tomllib
from pathlib import Path
from shutil import copytree

import pytest

from app.settings import ROOT
from quart_upsun.testing.programs import require
from tests.development.clone import environment, running
from tests.development.starter import git, install, make_shallow_clone, make_starter

SECONDS = 1200
# An hour's reading.
MAX_LINES_OF_LEANEST = 3500


@pytest.mark.long
@pytest.mark.parametrize("keep", ["none", "links", "api,admin", "all"])
def test_application_is_started_checked_and_rehearsed(tmp_path: Path, keep: str) -> None:
    for program in ("node", "bwrap", "nginx"):
        require(program)
    is_clone = keep == "links"
    root = (make_shallow_clone if is_clone else make_starter)(tmp_path / "a clone")
    install(root)
    cache = ROOT / ".mypy_cache"  # most files are unchanged since the last `make lint`
    if cache.is_dir():
        copytree(cache, root / cache.name)
    before = git(root, "rev-parse", "HEAD")
    # One process for the tests: another of these tests runs at the same time.
    alone = {"PYTEST_XDIST_AUTO_NUM_WORKERS": "1"}
    with running(root, "make", "start", "NAME=my-service", f"KEEP={keep}", **alone) as start:
        assert start.wait(SECONDS) == 0, start.output
    print(start.output)
    assert git(root, "rev-parse", "HEAD~1") == before
    assert git(root, "status", "--porcelain") == ""
    assert f"git reset --hard {before[:12]}" in start.output
    assert ("`git remote set-url origin …`" in start.output) == is_clone
    assert not (root / "development" / "start").exists()

    record = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["quart-upsun"]
    kept = {"none": [], "links": ["links"], "api,admin": ["api", "admin"]}
    assert record["keep"] == kept.get(keep) or (keep == "all" and len(record["keep"]) > 4)
    lines = sum(len(path.read_text().splitlines()) for path in (root / "app").rglob("*.py"))
    if keep == "none":
        assert lines <= MAX_LINES_OF_LEANEST

    again = subprocess.run(
        ["make", "start", "NAME=other", "KEEP=none"],
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 2
    assert again.stderr.startswith("This application was started already.")
    assert git(root, "status", "--porcelain") == ""

    with running(root, "make", "rehearse", "ARGS=--verbose") as rehearsal:
        assert rehearsal.wait(SECONDS) == 0, rehearsal.output
    print(rehearsal.output)
    assert "The deploy would succeed." in rehearsal.output
