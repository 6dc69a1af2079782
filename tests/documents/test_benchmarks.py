"""The document into which `make bench` writes its results."""

from app.settings import ROOT
from benchmarks import report


def test_results_replace_the_generated_section() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    written = report.replace_section(page, "something")
    assert f"{report.BEGIN}\n\nsomething\n\n{report.END}" in written
    # Writing again changes nothing, and the surrounding text is kept.
    assert report.replace_section(written, "something") == written
    assert written.partition(report.BEGIN)[0] == page.partition(report.BEGIN)[0]
    assert written.partition(report.END)[2] == page.partition(report.END)[2]
