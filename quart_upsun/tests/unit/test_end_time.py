"""The end time of maintenance, as an operator types it."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from quart_upsun.switches.end_time import parse_end_time

NOON = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
BERLIN = NOON.astimezone(timezone(timedelta(hours=1), "CET"))


@pytest.mark.parametrize(
    ("value", "now", "expected"),
    [
        ("14:30Z", NOON, "2026-12-01T14:30"),
        ("14:30+01:00", NOON, "2026-12-01T13:30"),
        ("14:30-05:00", NOON, "2026-12-01T19:30"),
        ("14:30", NOON, "2026-12-01T14:30"),  # this machine is in UTC
        ("14:30Z", BERLIN, "2026-12-01T14:30"),
        ("00:30Z", NOON + timedelta(hours=11), "2026-12-02T00:30"),
        ("00:30+01:00", NOON + timedelta(hours=10), "2026-12-01T23:30"),
        ("2026-12-01T14:30+01:00", NOON, "2026-12-01T13:30"),
        ("2026-12-02 14:30Z", NOON, "2026-12-02T14:30"),
        ("2026-12-01T14:30", NOON, "2026-12-01T14:30"),
        ("45m", NOON, "2026-12-01T12:45"),
        ("45min", BERLIN, "2026-12-01T12:45"),
        ("1h30m", NOON, "2026-12-01T13:30"),
        (" 1d2h ", NOON, "2026-12-02T14:00"),
    ],
)
def test_times_and_durations(value: str, now: datetime, expected: str) -> None:
    end = parse_end_time(value, now)
    assert end == datetime.fromisoformat(expected).replace(tzinfo=UTC)
    assert end.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("value", "now", "sentence"),
    [
        ("", NOON, "'' is not a time. Use 14:30Z, 2026-12-01T14:30"),
        ("noon", NOON, "'noon' is not a time."),
        ("14", NOON, "'14' is not a time."),
        ("25:00Z", NOON, "'25:00Z' is not a time."),
        ("14:30 CET", NOON, "'14:30 CET' is not a time."),
        ("2026-12-01", NOON, "'2026-12-01' is not a time."),
        ("2026-13-01T14:30Z", NOON, "is not a time."),
        ("-5m", NOON, "'-5m' is not a time."),
        (
            "14:30",
            BERLIN,
            "The time zone of '14:30' is unclear. Add Z for UTC or an offset:",
        ),
        ("2026-12-01T14:30", BERLIN, "The time zone of '2026-12-01T14:30' is unclear."),
        ("11:59Z", NOON, "'11:59Z' is in the past: it is 2026-12-01 12:00 UTC."),
        ("12:30+01:00", BERLIN, "is in the past: it is 2026-12-01 12:00 UTC."),
        ("2026-11-30T14:30Z", NOON, "is in the past"),
        ("0m", NOON, "'0m' is in the past"),
        ("8d", NOON, "'8d' is more than 7 days ahead."),
        ("2027-12-01T14:30Z", NOON, "is more than 7 days ahead."),
    ],
)
def test_other_values_get_a_sentence(value: str, now: datetime, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"\.$") as caught:
        parse_end_time(value, now)
    assert sentence in str(caught.value)
