"""Visits to the operations page with data."""

import math
from datetime import UTC, datetime, timedelta

from playwright.async_api import Page
from sqlalchemy import delete

from quart_upsun.metrics.models import MetricsDeploy, MetricsHour
from tests.browser.browsing import Site, Visit
from tests.browser.pages_admin import administration
from tests.features.operations.test_views import data, sample_totals

PATH = "/admin/operations/"


async def add_hours(site: Site) -> None:
    """Add two weeks of metrics, with a day without any, and two deploys."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    async with site.database.write() as session:
        await session.execute(delete(MetricsHour))
        await session.execute(delete(MetricsDeploy))
        for back in range(2, 14 * 24):
            totals = sample_totals()
            for requests in totals.routes.values():
                requests.requests = round(900 * (1.2 + math.sin(back / 4)))
                requests.buckets = {20: requests.requests, 30 + back % 9: requests.requests // 20}
            totals.gauges.memory_bytes = 180_000_000 + 400_000 * (back % 24)
            totals.gauges.pool_size, totals.gauges.pool_in_use = 16, back % 9
            if not 100 < back < 124:
                at = now - timedelta(hours=back)
                session.add(MetricsHour(at=at, minutes=60, data=data(totals)))
        for days, release in ((10, "3f9ac1d2"), (2, "b01c77e4")):
            session.add(MetricsDeploy(at=now - timedelta(days=days), release=release))


async def two_weeks(page: Page, site: Site) -> None:
    await add_hours(site)
    await administration(f"{PATH}?span=weeks")(page, site)


PAGES: dict[str, Visit] = {
    "operations, last hour": administration(PATH),
    "operations, two weeks": two_weeks,
}
