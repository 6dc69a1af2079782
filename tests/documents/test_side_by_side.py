"""What the peers of the benchmarks need is pinned."""

import re

from app.settings import ROOT

PEERS = ROOT / "benchmarks" / "side_by_side"


def test_packages_of_the_peers_are_pinned_by_content_alone() -> None:
    text = (PEERS / "requirements.txt").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    requirements = re.findall(r"^[a-z].*$", text, re.MULTILINE)
    assert all("==" in line and line.endswith("\\") for line in requirements)
    asked = re.findall(r"^[a-z]+", (PEERS / "requirements.in").read_text(), re.MULTILINE)
    assert {line.partition("==")[0] for line in requirements} >= set(asked)
