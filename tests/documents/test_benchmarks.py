"""What `make bench` writes has its place, and what its peers need is pinned."""

import re

from app.settings import ROOT
from benchmarks import report

PEERS = ROOT / "benchmarks" / "side_by_side"


def test_the_readme_has_a_place_for_the_measurements() -> None:
    readme = (ROOT / "README.md").read_text()
    written = report.replaced(readme, "something")
    assert f"{report.BEGIN}\n\nsomething\n\n{report.END}" in written
    # Once more changes nothing, and around it nothing is lost.
    assert report.replaced(written, "something") == written
    assert written.partition(report.BEGIN)[0] == readme.partition(report.BEGIN)[0]
    assert written.partition(report.END)[2] == readme.partition(report.END)[2]


def test_packages_of_the_peers_are_pinned_by_content_alone() -> None:
    text = (PEERS / "requirements.txt").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    requirements = re.findall(r"^[a-z].*$", text, re.MULTILINE)
    assert all("==" in line and line.endswith("\\") for line in requirements)
    asked = re.findall(r"^[a-z]+", (PEERS / "requirements.in").read_text(), re.MULTILINE)
    assert {line.partition("==")[0] for line in requirements} >= set(asked)
