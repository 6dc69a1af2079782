"""The operations page."""

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pytest
from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import insert, select

from quart_upsun.database import Database
from quart_upsun.live.models import LiveEvent
from quart_upsun.measure import JobMeasure, RequestMeasure
from quart_upsun.metrics.models import MetricsDeploy, MetricsHour, MetricsMinute
from quart_upsun.metrics.totals import Totals
from tests.features.factories import Person, new_client

PATH = "/admin/operations/"


@pytest.fixture
async def root(app: Quart, client: Client) -> Person:
    person = await Person().register(app, administrator=True)
    await person.log_in(client)
    return person


def measured(route: str, took: float, *, status: int = 200) -> RequestMeasure:
    return RequestMeasure("GET", "id", "trace", route=route, status=status, seconds=took)


def sample_totals() -> Totals:
    """Ten requests, one of them slow and one failed, and a failed job."""
    totals = Totals()
    for _ in range(8):
        totals.count_request(measured("/fast/<name>", 0.01))
    totals.count_request(measured("/slow/", 2.0))
    totals.count_request(measured("/fast/<name>", 0.01, status=503))
    totals.count_job(JobMeasure("mail", 1, 1, 0.5, "trace", outcome="failed", seconds=1.0))
    totals.gauges.queued_jobs, totals.gauges.oldest_job_seconds = 1234, 77
    return totals


async def add(database: Database, *rows: object) -> None:
    async with database.write() as session:
        session.add_all(rows)


def data(totals: Totals) -> dict[str, object]:
    encoded: dict[str, object] = json.loads(json.dumps(asdict(totals)))
    return encoded


async def soup(client: Client, path: str = PATH) -> BeautifulSoup:
    response = await client.get(path)
    assert response.status_code == 200
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def test_page_is_for_administrators(app: Quart) -> None:
    client = new_client(app)
    await (await Person().register(app)).log_in(client)
    for path in (PATH, f"{PATH}events/"):
        assert (await client.get(path)).status_code == 404


async def test_page_without_data(client: Client, root: Person) -> None:
    page = await soup(client)
    assert "No data yet" in page.text
    assert "No requests yet." in page.text


async def test_page_is_linked_from_administration(client: Client, root: Person) -> None:
    page = await soup(client, "/admin/")
    assert page.select_one(f"nav[aria-label=Administration] a[href='{PATH}']")


async def test_last_hour_adds_up_processes(
    client: Client, root: Person, database: Database
) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    await add(
        database,
        *(MetricsMinute(at=now, process=each, data=data(sample_totals())) for each in "ab"),
        MetricsDeploy(at=now - timedelta(minutes=5), release="0123456789abcdef"),
    )
    page = await soup(client)
    figures = {
        each.dt.text: each.dd.text for each in page.select(".figures div") if each.dt and each.dd
    }
    assert figures["Requests"] == "20"
    assert figures["Errors (5xx)"] == "10.00%"
    assert figures["Processes"] == "2"
    assert figures["Jobs due"] == "1,234"  # of the database, not of each process
    assert figures["Failed jobs"] == "2"
    routes = [each.text for each in page.select("#routes tbody th")]
    assert routes == ["GET /slow/", "GET /fast/<name>"]
    first = page.select_one("#table-requests tbody td")
    assert first is not None
    assert first.text == "20"
    assert "0123456" in page.text
    assert page.select(".deploy")


async def test_two_weeks_by_hour(client: Client, root: Person, database: Database) -> None:
    at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=3)
    async with database.write() as session:
        row = {"at": at, "minutes": 60, "data": data(sample_totals())}
        await session.execute(insert(MetricsHour).values(row))
    page = await soup(client, f"{PATH}?span=weeks")
    assert next(each.text for each in page.select(".figures dd")) == "10"
    path = page.select_one("#chart-requests path.series-1")
    assert path is not None
    assert path["d"]


async def test_open_page_gets_events(
    app: Quart, client: Client, root: Person, database: Database
) -> None:
    app.extensions["operations_updates"].seconds = 0.02
    async with client.request(f"{PATH}events/") as connection:
        await connection.send_complete()
        received = b""
        async with asyncio.timeout(30):
            while b"event: operations" not in received:
                received += await connection.receive()
        await connection.disconnect()
    async with database.read() as session:
        kinds = {*await session.scalars(select(LiveEvent.kind))}
    assert kinds == {"operations"}


async def test_page_shows_switches(app: Quart, client: Client, root: Person) -> None:
    assert "Maintenance and read-only mode are off." in (await soup(client)).text
    since = datetime(2026, 11, 29, 12, tzinfo=UTC)
    row = {"name": "maintenance", "message": "At <noon>.", "retry_after_seconds": 60}
    app.extensions["quart_upsun"].switches.update([{**row, "since": since}])
    section = (await soup(client)).select_one("section[aria-labelledby=switches]")
    assert section is not None
    assert "Maintenance is on" in section.text
    assert "At <noon>." in section.text
    assert section.select_one("time[datetime^='2026-11-29T12:00']")
