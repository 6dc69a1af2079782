"""Parse the end time of maintenance or read-only mode, as an operator types it."""

import re
from datetime import UTC, datetime, time, timedelta

DURATION = re.compile(r"(?=\d)(?:(\d{1,3})d)?(?:(\d{1,4})h)?(?:(\d{1,5})m(?:in)?)?")
NEXT_TIME_WITHIN = timedelta(hours=12)  # a time without a date that is later has passed today
LONGEST = timedelta(days=7)


def parse_end_time(value: str, now: datetime) -> datetime:
    """Return the time that `14:30Z`, `2026-12-01T14:30+01:00` or `1h30m` means.

    Args:
        value: a time of day, a date and time, or a duration. A time needs a zone, except on a
            machine whose own time zone is UTC, such as a container of Upsun.
        now: the current time, in the time zone of this machine.

    Raises:
        ValueError: the time is invalid, unclear, in the past or too far ahead. The message is a
            sentence for the operator.
    """
    text = value.strip()
    if (found := DURATION.fullmatch(text)) is not None:
        days, hours, minutes = (int(part or 0) for part in found.groups())
        end = now + timedelta(days=days, hours=hours, minutes=minutes)
    else:
        end = _parse_time(text, now)
    if end <= now:
        raise ValueError(f"{value!r} is in the past: it is {_show(now)}.")
    if end - now > LONGEST:
        raise ValueError(f"{value!r} is more than {LONGEST.days} days ahead.")
    return end.astimezone(UTC)


def _parse_time(text: str, now: datetime) -> datetime:
    try:
        if ":" not in text:
            raise ValueError
        is_time_of_day = "-" not in text.partition(":")[0]
        found: datetime | time = (
            time.fromisoformat(text) if is_time_of_day else datetime.fromisoformat(text)
        )
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time. Use 14:30Z, 2026-12-01T14:30+01:00, or a duration such as"
            " 45m or 1h30m."
        ) from None
    if found.tzinfo is None and now.utcoffset():
        raise ValueError(
            f"The time zone of {text!r} is unclear. Add Z for UTC or an offset:"
            f" {text}Z, {text}+01:00."
        )
    zone = found.tzinfo or UTC
    if isinstance(found, datetime):
        return found.replace(tzinfo=zone)
    end = datetime.combine(now.astimezone(zone).date(), found, zone)
    tomorrow = end + timedelta(days=1)
    return tomorrow if end <= now and tomorrow - now <= NEXT_TIME_WITHIN else end


def _show(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
