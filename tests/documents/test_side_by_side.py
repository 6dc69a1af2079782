"""The packages of the compared Flask and FastAPI applications."""

import re

from app.settings import ROOT

PEERS = ROOT / "benchmarks" / "side_by_side"


def test_packages_are_pinned_by_hash() -> None:
    text = (PEERS / "requirements.txt").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    requirements = re.findall(r"^[a-z].*$", text, re.MULTILINE)
    assert all("==" in line and line.endswith("\\") for line in requirements)
    required = re.findall(r"^[a-z]+", (PEERS / "requirements.in").read_text(), re.MULTILINE)
    assert {line.partition("==")[0] for line in requirements} >= set(required)
