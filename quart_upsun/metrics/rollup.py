"""Add up minutes to hours, and delete what is too old: a scheduled job."""

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, select, text

from quart_upsun.database import Database
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.metrics.models import MetricsDeploy, MetricsHour, MetricsMinute
from quart_upsun.metrics.series import read_minutes
from quart_upsun.metrics.totals import totals_of_time

HOUR = timedelta(hours=1)
MINUTES_RETENTION = timedelta(hours=2)
"""Besides the current hour. A process that had no database writes up to ten minutes late."""
HOURS_RETENTION = timedelta(days=15)

# After a crash of the database, an hour has fewer minutes than before.
UPSERT = text(
    """
    INSERT INTO metrics_hours (at, minutes, data) VALUES (:at, :minutes, CAST(:data AS jsonb))
    ON CONFLICT (at) DO UPDATE SET minutes = excluded.minutes, data = excluded.data
    WHERE excluded.minutes >= metrics_hours.minutes
    """
)


async def roll_up(running: JobContext) -> None:
    """Add up complete hours, and delete what is too old."""
    await roll_up_hours(running.database, datetime.now(UTC))


async def roll_up_hours(database: Database, now: datetime) -> None:
    """Add up the hours before `now` that still have all minutes, and delete what is too old.

    An hour is added up several times, because minutes can be written late.
    """
    this_hour = now.replace(minute=0, second=0, microsecond=0)
    async with database.read(exact=True) as session:
        hours = await session.scalars(
            select(func.date_trunc("hour", MetricsMinute.at))
            .where(MetricsMinute.at < this_hour)
            .distinct()
        )
    for hour in sorted(hours):
        async with database.read(exact=True) as session:
            minutes = await read_minutes(session, hour, hour + HOUR)
        data = json.dumps(asdict(totals_of_time(minutes.values())))
        async with database.write() as session:
            await session.execute(UPSERT, {"at": hour, "minutes": len(minutes), "data": data})
    async with database.write() as session:
        for model, age in (
            (MetricsMinute, MINUTES_RETENTION),
            (MetricsHour, HOURS_RETENTION),
            (MetricsDeploy, HOURS_RETENTION),
        ):
            await session.execute(delete(model).where(model.at < this_hour - age))


ROLL_UP = Schedule(Task("roll up metrics", roll_up), "7 * * * *")
