"""Geometry of the charts, for templates that draw them as SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from quart_upsun.metrics.series import Deploy, Span
from quart_upsun.metrics.totals import Totals

WIDTH, HEIGHT = 400, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 6, 8, 20
TIME_LABELS = 5
TABLE_ROWS = 15
"""The rows of the table: as many steps as fit are put into one row."""

Number = Callable[[Totals], float | None]


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    label: str
    values: list[float | None]
    """By step; None where there is no data."""


@dataclass(frozen=True)
class Tick:
    """A label of an axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A vertical line with a label: a deploy."""

    x: float
    deploy: Deploy


@dataclass(frozen=True)
class Chart:
    """A line chart with a common scale for its series.

    Args:
        key: the id in the page.
        title: what it shows.
        unit: the unit of the values.
        span: the times of the steps.
        series: at most three lines.
    """

    key: str
    title: str
    unit: str
    span: Span
    series: tuple[Series, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no step has a value."""
        return not any(each is not None for line in self.series for each in line.values)

    @property
    def top(self) -> float:
        """The upper end of the scale, a round number."""
        return round_up(max((_maximum(line.values) or 0 for line in self.series), default=0))

    @property
    def ticks(self) -> list[Tick]:
        """The labels of the value axis."""
        return [Tick(self._y(self.top * n / 4), number(self.top * n / 4)) for n in (0, 2, 4)]

    def times(self, label: Callable[[datetime], str]) -> list[Tick]:
        """Return the labels of the time axis.

        Args:
            label: formats a time.
        """
        last = len(self.span.times) - 1
        steps = [round(last * n / (TIME_LABELS - 1)) for n in range(TIME_LABELS)]
        return [Tick(self._x(step), label(self.span.times[step])) for step in steps]

    @property
    def marks(self) -> list[Mark]:
        """The deploys, at the step that they were in."""
        first = self.span.times[0]
        last = len(self.span.times) - 1
        return [
            Mark(self._x(min(last, (each.at - first) / self.span.step)), each)
            for each in self.span.deploys
        ]

    def path(self, series: Series) -> str:
        """Return the line as SVG path data. It is interrupted where there is no data."""
        parts = []
        before = [None, *series.values]
        after = [*series.values[1:], None]
        for step, (previous, value, following) in enumerate(
            zip(before, series.values, after, strict=False)
        ):
            if value is None:
                continue
            command = "M" if previous is None else "L"
            parts.append(f"{command}{self._x(step):.1f} {self._y(value):.1f}")
            if previous is None and following is None:
                parts.append("m-2 0h4")  # a point of its own would be hardly visible
        return "".join(parts)

    @property
    def rows(self) -> list[tuple[datetime, list[float | None]]]:
        """The values for a table, the newest first: the maximum of the steps of each row."""
        size = math.ceil(len(self.span.times) / TABLE_ROWS)
        starts = range(len(self.span.times) - size, -size, -size)
        return [
            (
                self.span.times[max(0, start)],
                [_maximum(line.values[max(0, start) : start + size]) for line in self.series],
            )
            for start in starts
        ]

    def _x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / (len(self.span.times) - 1)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top


def lines(span: Span, *lines: tuple[str, Number]) -> tuple[Series, ...]:
    """Return the series of a span: each with a label, and a function of the totals of a step."""
    return tuple(
        Series(label, [None if each is None else value(each) for each in span.totals])
        for label, value in lines
    )


def round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 10, 20, 40, …; 1 for a value that is not positive."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * each for each in (1, 2, 4, 10, 20) if power * each >= value)


def number(value: float | None) -> str:
    """Format a number with three significant digits: `1,200`, `12.5`, `0.25`, `-` for none."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _maximum(values: Sequence[float | None]) -> float | None:
    return max((each for each in values if each is not None), default=None)
