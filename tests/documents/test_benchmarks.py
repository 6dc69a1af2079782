"""The document into which `make bench` writes its results, its charts and targets."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from app.settings import ROOT
from benchmarks import chart, harness, report
from benchmarks.chart import Bar

SVG = "{http://www.w3.org/2000/svg}"


def test_results_replace_the_generated_section() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    written = report.replace_section(page, "something")
    assert f"{report.BEGIN}\n\nsomething\n\n{report.END}" in written
    # Writing again changes nothing, and the surrounding text is kept.
    assert report.replace_section(written, "something") == written
    assert written.partition(report.BEGIN)[0] == page.partition(report.BEGIN)[0]
    assert written.partition(report.END)[2] == page.partition(report.END)[2]


def test_options_have_the_type_of_their_default() -> None:
    parser = harness.parser("example", None, rounds=(3, "rounds"), seconds=(2.0, "duration"))
    assert vars(parser.parse_args([])) == {"rounds": 3, "seconds": 2.0}
    assert vars(parser.parse_args(["--seconds", "1"])) == {"rounds": 3, "seconds": 1.0}
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", "1.5"])


def test_missed_target_fails_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.finish({"rate": 1}, []) == 0
    assert capsys.readouterr().out == '{"rate": 1, "ok": true}\n'
    assert harness.finish({"rate": 1}, ["2, measured 1"]) == 1
    assert capsys.readouterr().out == 'Target missed: 2, measured 1\n{"rate": 1, "ok": false}\n'


def luminance(color: str) -> float:
    """Return the relative luminance of a color such as `#0969da` (WCAG 2)."""
    channels = [int(color[position : position + 2], 16) / 255 for position in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", chart.THEMES)
def test_bars_of_a_chart_are_proportional_and_legible(theme: str) -> None:
    colors = chart.THEMES[theme]
    assert contrast(colors.text, colors.background) >= 7
    for color in (colors.bar, colors.highlight):
        assert contrast(color, colors.background) >= 3
    groups = {
        "Fast & <slow>": [Bar("half", 50, "50/s"), Bar("whole", 100, "100/s", is_highlighted=True)],
        "Other": [Bar("tenth", 10, "10/s")],
    }
    svg = ElementTree.fromstring(chart.draw("A title", groups, colors))  # noqa: S314 own text
    bars = [each for each in svg.iter(f"{SVG}rect") if "bar" in each.get("class", "")]
    half, whole, tenth = (float(each.attrib["width"]) for each in bars)
    # The longest bar takes the space between labels and values.
    space = chart.WIDTH - chart.LABEL_WIDTH - chart.VALUE_WIDTH - 2 * chart.PADDING
    assert whole == space
    assert whole == pytest.approx(2 * half, abs=0.2)
    assert whole == pytest.approx(10 * tenth, abs=1)
    assert ["ours" in each.attrib["class"] for each in bars] == [False, True, False]
    texts = [each.text for each in svg.iter(f"{SVG}text")]
    assert texts[:3] == ["Fast & <slow>", "half", "50/s"]
    # Nothing is outside of the image or overlaps vertically.
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    assert all(float(each.attrib["x"]) + float(each.attrib["width"]) < width for each in bars)
    tops = [float(each.attrib["y"]) for each in bars]
    assert all(later - earlier >= chart.ROW_HEIGHT for earlier, later in pairwise(tops))
    assert tops[-1] + chart.BAR_HEIGHT < height


def test_chart_needs_a_positive_value() -> None:
    with pytest.raises(ValueError, match="positive"):
        chart.draw("A title", {"Group": [Bar("none", 0, "0/s")]}, chart.THEMES["light"])
