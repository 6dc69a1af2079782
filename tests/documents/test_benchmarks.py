"""The results of `make bench` have their place."""

from benchmarks import report


def test_results_replace_the_previous_ones() -> None:
    document = report.DOCUMENT.read_text()
    written = report.replaced(document, "something")
    assert f"{report.BEGIN}\n\nsomething\n\n{report.END}" in written
    # A second time changes nothing, and nothing around the results is lost.
    assert report.replaced(written, "something") == written
    assert written.partition(report.BEGIN)[0] == document.partition(report.BEGIN)[0]
    assert written.partition(report.END)[2] == document.partition(report.END)[2]
