"""The table of OWASP's requirements in docs/security-asvs.md."""

import re

from app.settings import ROOT
from tests.repository import tracked_files

# The number of requirements in each section of V6 and V7 of ASVS 5.0.0.
SECTIONS = {
    "6.1": 3,
    "6.2": 12,
    "6.3": 8,
    "6.4": 6,
    "6.5": 8,
    "6.6": 4,
    "6.7": 2,
    "6.8": 4,
    "7.1": 3,
    "7.2": 4,
    "7.3": 2,
    "7.4": 5,
    "7.5": 3,
    "7.6": 2,
}
COLUMNS = ["requirement", "level", "in short", "status", "where, or why not", "tests"]
REFERENCE = re.compile(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "security-asvs.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert all(len(each) == len(COLUMNS) for each in cells)
    return [each for each in cells if re.fullmatch(r"[\d.]+", each[0])]


def test_every_requirement_has_a_row() -> None:
    expected = [
        f"{section}.{number}"
        for section, count in SECTIONS.items()
        for number in range(1, count + 1)
    ]
    assert [each[0] for each in rows()] == expected


def test_every_row_has_a_status_and_a_test_or_a_reason() -> None:
    for number, level, short, status, where, tests in rows():
        assert level in {"1", "2", "3"}, number
        assert short, number
        assert where, number
        assert status in {"met", "not met", "not applicable"}, number
        if status == "met":
            assert REFERENCE.search(tests), number


def test_named_tests_exist() -> None:
    """Except those of features that were removed."""
    files = [name for name in tracked_files() if re.search(r"(^|/)test_\w+\.py$", name)]
    for number, *_, tests in rows():
        assert tests.count("`") == 2 * len(REFERENCE.findall(tests)), number
        for file, test in REFERENCE.findall(tests):
            folder = file.rpartition("/")[0]
            if folder and not (ROOT / "tests" / "features" / folder).exists():
                continue
            defined = re.compile(rf"^(async )?def {test}\(", re.MULTILINE)
            found = [name for name in files if f"/{name}".endswith(f"/{file}")]
            assert any(defined.search((ROOT / name).read_text()) for name in found), (number, test)
