"""Read the metrics of all processes: the last hour by minute, or two weeks by hour."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import Executable, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.database.errors import FEATURE_NOT_SUPPORTED, sqlstate
from quart_upsun.metrics.models import MetricsDeploy, MetricsHour, MetricsMinute
from quart_upsun.metrics.totals import Totals, from_json, totals_of_processes, totals_of_time

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
MINUTES, HOURS = 60, 14 * 24


@dataclass(frozen=True)
class Deploy:
    """The start of a release."""

    at: datetime
    release: str


@dataclass(frozen=True)
class Span:
    """The metrics of a time span in equal steps, the oldest first."""

    step: timedelta
    times: list[datetime]
    """The start of each step. The last step has not ended."""
    totals: list[Totals | None]
    """None for a step without data, in which no process ran."""
    deploys: list[Deploy]
    processes: int
    """The number of processes with data in the last two minutes."""

    @property
    def total(self) -> Totals:
        """The totals of the whole span."""
        return totals_of_time(each for each in self.totals if each is not None)

    @property
    def newest(self) -> Totals | None:
        """The newest step with data, if it is one of the last two."""
        return self.totals[-1] or self.totals[-2]


async def read_minutes(
    session: AsyncSession, since: datetime, until: datetime
) -> dict[datetime, Totals]:
    """Return the totals of all processes for each minute with data."""
    query = (
        select(MetricsMinute.at, MetricsMinute.data)
        .where(MetricsMinute.at >= since, MetricsMinute.at < until)
        .order_by(MetricsMinute.at)
    )
    rows = await _read_unlogged(session, query)
    return {
        at: totals_of_processes(from_json(data) for _, data in group)
        for at, group in groupby(rows, key=lambda row: row[0])
    }


async def read_last_hour(session: AsyncSession, now: datetime) -> Span:
    """Return the last hour by minute."""
    last = now.replace(second=0, microsecond=0)
    times = [last - MINUTE * back for back in reversed(range(MINUTES))]
    found = await read_minutes(session, times[0], last + MINUTE)
    return await _span(session, MINUTE, times, found, now)


async def read_two_weeks(session: AsyncSession, now: datetime) -> Span:
    """Return the last two weeks by hour. The last hours are added up from their minutes."""
    last = now.replace(minute=0, second=0, microsecond=0)
    times = [last - HOUR * back for back in reversed(range(HOURS))]
    query = select(MetricsHour.at, MetricsHour.data).where(MetricsHour.at >= times[0])
    found = {at: from_json(data) for at, data in await session.execute(query)}
    for hour in (last - HOUR, last):
        if hour not in found and (minutes := await read_minutes(session, hour, hour + HOUR)):
            found[hour] = totals_of_time(minutes.values())
    return await _span(session, HOUR, times, found, now)


async def _span(
    session: AsyncSession,
    step: timedelta,
    times: list[datetime],
    found: dict[datetime, Totals],
    now: datetime,
) -> Span:
    recent = select(MetricsMinute.process).where(MetricsMinute.at >= now - 2 * MINUTE).distinct()
    return Span(
        step,
        times,
        [found.get(at) for at in times],
        await _read_deploys(session, times[0]),
        len(await _read_unlogged(session, recent)),
    )


async def _read_unlogged(session: AsyncSession, query: Executable) -> Sequence[Any]:
    """Return the rows of a query of `MetricsMinute`; none on a standby server."""
    try:
        rows = await session.execute(query)
    except DBAPIError as error:
        if sqlstate(error) != FEATURE_NOT_SUPPORTED:
            raise
        # https://www.postgresql.org/docs/18/hot-standby.html#HOT-STANDBY-USERS
        return []
    return rows.all()


async def _read_deploys(session: AsyncSession, since: datetime) -> list[Deploy]:
    """Return the deploys. Processes of a release that start at once count as one deploy."""
    query = select(MetricsDeploy.at, MetricsDeploy.release).order_by(
        MetricsDeploy.at, MetricsDeploy.release
    )
    deploys = [Deploy(at, release) for at, release in await session.execute(query)]
    firsts = [next(group) for _, group in groupby(deploys, key=lambda each: each.release)]
    return [each for each in firsts if each.at >= since]
