"""Draw a bar chart as SVG, in colors for a light or a dark background."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDTH, LABEL_WIDTH, VALUE_WIDTH, PADDING = 760, 190, 170, 20
ROW_HEIGHT, BAR_HEIGHT, HEADING_HEIGHT = 24, 14, 38
FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'DejaVu Sans', sans-serif"


class Bar(NamedTuple):
    """A bar of the chart."""

    label: str
    value: float
    text: str
    """The text behind the bar."""
    is_highlighted: bool = False


@dataclass(frozen=True)
class Colors:
    """The colors of a chart."""

    background: str
    text: str
    bar: str
    highlight: str


THEMES = {
    "light": Colors("#ffffff", "#1f2328", "#8c959f", "#0969da"),
    "dark": Colors("#0d1117", "#f0f6fc", "#7d8590", "#4493f8"),
}


def draw(title: str, groups: Mapping[str, Sequence[Bar]], colors: Colors) -> str:
    """Return a chart with horizontal bars as SVG.

    Args:
        title: a description, for screen readers.
        groups: heading -> bars, from top to bottom. All bars have the same scale.
        colors: of the chart.

    Raises:
        ValueError: there is no bar with a positive value.
    """
    largest = max((bar.value for bars in groups.values() for bar in bars), default=0)
    if largest <= 0:
        raise ValueError("a chart needs a positive value")
    left = PADDING + LABEL_WIDTH
    scale = (WIDTH - left - VALUE_WIDTH - PADDING) / largest
    parts = []
    top = PADDING // 2
    for heading, bars in groups.items():
        parts.append(_text(PADDING, top + HEADING_HEIGHT - 14, heading, "heading"))
        top += HEADING_HEIGHT
        for bar in bars:
            kind = "ours" if bar.is_highlighted else "other"
            width = bar.value * scale
            middle = top + ROW_HEIGHT / 2
            parts += [
                _text(left - 8, middle + 4, bar.label, f"label {kind}"),
                f'<rect class="bar {kind}" x="{left}" y="{middle - BAR_HEIGHT / 2:g}"'
                f' width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>',
                _text(left + width + 8, middle + 4, bar.text, kind),
            ]
            top += ROW_HEIGHT
    height = top + PADDING
    style = (
        f"text {{ font: 13px {FONT}; fill: {colors.text} }}"
        " .heading { font-size: 15px; font-weight: 600 }"
        " .label { text-anchor: end } text.ours { font-weight: 600 }"
        f" .bar {{ fill: {colors.bar} }} .bar.ours {{ fill: {colors.highlight} }}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
            f' width="{WIDTH}" height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style>",
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="{colors.background}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
