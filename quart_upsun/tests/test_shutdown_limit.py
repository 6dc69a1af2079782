"""The time limit of a step of the shutdown."""

import signal
from collections.abc import Iterator

import pytest

from quart_upsun.time_limits import EXIT_MARGIN_SECONDS, shutdown_limit


@pytest.fixture(autouse=True)
def no_timer() -> Iterator[None]:
    previous = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def test_a_step_has_its_own_limit_without_a_timer() -> None:
    assert shutdown_limit(1.0) == 1.0


@pytest.mark.parametrize(
    ("left", "limit"), [(8.0, 1.0), (1.0, 1.0 - EXIT_MARGIN_SECONDS), (0.1, 0.0)]
)
def test_a_step_ends_before_the_timer(left: float, limit: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, left)
    assert shutdown_limit(1.0) == pytest.approx(limit, abs=0.05)
