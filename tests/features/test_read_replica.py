"""The application with a read replica that is far behind: what must be exact is."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import text

from app import create_app
from app.settings import Settings
from conftest import migrated_replication
from embedded_postgres.replication import Cluster, wait_for_replay
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from tests.features.factories import Person


@pytest.fixture(scope="module")
def clusters() -> Iterator[tuple[Cluster, Cluster]]:
    with migrated_replication() as clusters:
        yield clusters


@pytest.fixture
def settings(settings: Settings, clusters: tuple[Cluster, Cluster]) -> Settings:
    primary, standby = (parse_database_url(cluster.url()) for cluster in clusters)
    return settings.model_copy(update={"database_url": primary, "database_replica_url": standby})


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    app = create_app(settings)
    async with app.test_app():
        replica = app.extensions["quart_upsun"].database.replica
        deadline = time.monotonic() + 30
        while not replica.is_usable:
            assert time.monotonic() < deadline, "the replica is not usable"
            await asyncio.sleep(0.02)
        yield app


@pytest.fixture
def database(app: Quart) -> Database:
    found: Database = app.extensions["quart_upsun"].database
    return found


@pytest.fixture
async def lag(clusters: tuple[Cluster, Cluster]) -> AsyncIterator[Cluster]:
    """The standby, to be set behind; it catches up at the end."""
    primary, standby = clusters
    yield standby
    await standby.reconfigure(recovery_min_apply_delay="0")
    await wait_for_replay(primary, standby)


async def set_behind(clusters: tuple[Cluster, Cluster]) -> None:
    primary, standby = clusters
    await wait_for_replay(primary, standby)
    await standby.reconfigure(recovery_min_apply_delay="10min")


async def test_revoked_sessions_are_rejected_at_once(
    app: Quart, database: Database, clusters: tuple[Cluster, Cluster], lag: Cluster
) -> None:
    person = Person("ada")
    await person.register(app)
    browser, other = app.test_client(), app.test_client()
    for client in (browser, other):
        assert (await client.post("/login/", form=person.login)).status_code == 303
        assert (await client.get("/account/")).status_code == 200
    await set_behind(clusters)
    # The replica still has both sessions.
    jar = browser.cookie_jar
    assert jar is not None
    stolen = next(cookie for cookie in jar if cookie.name.endswith("login"))
    assert (await browser.post("/logout/")).status_code == 303
    jar.set_cookie(stolen)
    assert (await browser.get("/account/")).status_code == 303
    async with database.write() as session:
        await session.execute(text("UPDATE users SET session_version = session_version + 1"))
    assert (await other.get("/account/")).status_code == 303


async def test_registration_and_login_need_no_replay(
    client: Client, clusters: tuple[Cluster, Cluster], lag: Cluster
) -> None:
    await set_behind(clusters)
    person = Person("grace")
    assert (await client.post("/register/", form=person.registration)).status_code == 303
    assert (await client.post("/login/", form=person.login)).status_code == 303
    page = await client.get("/account/")
    assert page.status_code == 200
    assert "grace" in await page.get_data(as_text=True)
