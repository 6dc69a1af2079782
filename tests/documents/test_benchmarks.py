"""What `make bench` writes has its place."""

from app.settings import ROOT
from benchmarks import report


def test_the_page_has_a_place_for_the_measurements() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    written = report.replaced(page, "something")
    assert f"{report.BEGIN}\n\nsomething\n\n{report.END}" in written
    # Once more changes nothing, and around it nothing is lost.
    assert report.replaced(written, "something") == written
    assert written.partition(report.BEGIN)[0] == page.partition(report.BEGIN)[0]
    assert written.partition(report.END)[2] == page.partition(report.END)[2]
