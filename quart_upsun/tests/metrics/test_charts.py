"""The geometry of the charts."""

from datetime import UTC, datetime, timedelta

import pytest

from quart_upsun.metrics.charts import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Chart, Series
from quart_upsun.metrics.series import Span

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "commands"),
    [
        ([0.0, 1.0, 2.0, 1.0], "MLLL"),
        ([0.0, 1.0, None, 2.0, 1.0], "MLML"),
        ([None, None, 1.0], "Mmh"),
        ([1.0, None, 2.0, 2.0], "MmhML"),
        ([None, None], ""),
    ],
)
def test_lines_are_interrupted_and_single_points_are_visible(
    values: list[float | None], commands: str
) -> None:
    times = [NOON + step * MINUTE for step in range(len(values))]
    series = Series("Line", values)
    chart = Chart(
        "key", "Title", "unit", Span(MINUTE, times, [None] * len(times), [], 0), (series,)
    )
    path = chart.path(series)
    assert "".join(letter for letter in path if letter.isalpha()) == commands
    if values[0] == 0.0:
        assert path.startswith(f"M{LEFT:.1f} {HEIGHT - BOTTOM:.1f}")
        assert f"L{WIDTH - RIGHT:.1f} " in path
