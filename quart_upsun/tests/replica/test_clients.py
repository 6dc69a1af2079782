"""Clients read what they have written: browsers by a cookie, programs by their access token."""

import asyncio
from collections.abc import AsyncIterator
from http.cookies import Morsel, SimpleCookie

import httpx
import pytest
from itsdangerous import TimestampSigner, URLSafeTimedSerializer
from pydantic import SecretStr
from quart import Quart, current_app

from embedded_postgres.replication import Cluster, wait_for_replay
from quart_upsun.database.log_position import MAX_POSITION, POSITION_SECONDS
from quart_upsun.database.url import parse_database_url
from quart_upsun.security.signing import sign
from quart_upsun.telemetry.gauges import gauges
from quart_upsun.testing.servers import Server, serving
from quart_upsun.tests.replica.application import NAME, factory
from quart_upsun.tests.replica.conftest import SECONDS, execute
from quart_upsun.tests.sample import Settings
from quart_upsun.web.read_positions import PURPOSE, position_of_cookie

COOKIE = f"{Settings.name}-position"
TOKEN = {"Authorization": "Bearer token-7"}


@pytest.fixture
async def server(primary: Cluster, standby: Cluster) -> AsyncIterator[Server]:
    """Two serving processes, whose reads the replica serves."""
    urls = {"DATABASE_URL": primary.url(), "DATABASE_REPLICA_URL": standby.url()}
    async with serving(2, NAME, **urls) as server:
        await server.wait_for_event("replica ready", times=2)
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client without cookies, whose requests reach both processes."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
        yield client
        client.cookies.clear()


async def lag(primary: Cluster, standby: Cluster, *names: str) -> None:
    """Set values to 0 on both servers; from then on the replica misses all changes."""
    for name in names:
        await execute(primary, f"DELETE FROM settings_of WHERE name = '{name}'")  # noqa: S608
        await execute(primary, f"INSERT INTO settings_of VALUES ('{name}', 0)")  # noqa: S608
    await wait_for_replay(primary, standby)
    await standby.reconfigure(recovery_min_apply_delay="10min")


def cookie_of(response: httpx.Response) -> Morsel[str]:
    cookie: SimpleCookie = SimpleCookie(response.headers["Set-Cookie"])
    return cookie[COOKIE]


async def values(client: httpx.AsyncClient, path: str, **options: dict[str, str]) -> set[str]:
    """Read a value with sessions and connections, from both processes."""
    queries = ["", "?direct"] * 6
    pages = await asyncio.gather(*(client.get(path + query, **options) for query in queries))  # type: ignore[arg-type]
    assert {page.status_code for page in pages} == {200}
    assert all("Set-Cookie" not in page.headers for page in pages)
    return {page.text for page in pages}


async def test_a_browser_reads_its_own_changes(
    client: httpx.AsyncClient, primary: Cluster, standby: Cluster, server: Server
) -> None:
    await lag(primary, standby, "browser")
    response = await client.post("/values/browser", params={"value": 1})
    assert (response.status_code, response.text) == (200, "1")
    cookie = cookie_of(response)
    assert int(cookie["max-age"]) == POSITION_SECONDS
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")
    # The only difference between the two is the cookie. The replica has not replayed the change.
    sent = {"Cookie": f"{COOKIE}={cookie.value}"}
    client.cookies.clear()
    assert await values(client, "/values/browser", headers=sent) == {"1"}
    assert await values(client, "/values/browser") == {"0"}
    assert server.problems() == []


async def test_a_forged_cookie_changes_nothing(
    client: httpx.AsyncClient, primary: Cluster, standby: Cluster
) -> None:
    await lag(primary, standby, "forged")
    await client.post("/values/forged", params={"value": 1})
    client.cookies.clear()
    serializer = URLSafeTimedSerializer("another key", salt=PURPOSE)
    for value in (serializer.dumps(MAX_POSITION), "x" * 4000, "", "1", "..."):
        sent = {"Cookie": f"{COOKIE}={value}"}
        assert await values(client, "/values/forged", headers=sent) == {"0"}


async def test_a_program_reads_its_own_changes(
    client: httpx.AsyncClient, primary: Cluster, standby: Cluster
) -> None:
    await lag(primary, standby, "program")
    path = "/api/v1/values/program"
    response = await client.post(path, params={"value": 1}, headers=TOKEN)
    assert response.status_code == 204
    assert "Set-Cookie" not in response.headers
    assert await values(client, path, headers=TOKEN) == {"1"}
    assert await values(client, path, headers={"Authorization": "Bearer token-8"}) == {"0"}
    # The position expires like the cookie.
    await execute(primary, "UPDATE log_positions SET written_at = now() - interval '16 seconds'")
    assert await values(client, path, headers=TOKEN) == {"0"}


async def test_cacheable_responses_set_no_cookie(
    client: httpx.AsyncClient, primary: Cluster, standby: Cluster
) -> None:
    await client.get("/counted/public", params={"value": 1})
    await wait_for_replay(primary, standby)
    for path in ("/public/public", "/counted/public?value=2"):
        response = await client.get(path)
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "public, max-age=0, s-maxage=60"
        assert "Set-Cookie" not in response.headers


async def test_requests_survive_the_loss_of_the_replica(
    client: httpx.AsyncClient, primary: Cluster, standby: Cluster, server: Server
) -> None:
    assert {(await client.get("/server")).text for _ in range(4)} == {"replica"}
    assert (await client.get("/readyz")).status_code == 200
    standby.kill()
    assert {(await client.get("/server")).text for _ in range(8)} == {"primary"}
    assert (await client.get("/readyz")).status_code == 200
    await server.wait_for_event("replica unavailable", times=2)
    standby.start()
    await server.wait_for_event("replica ready", times=4)
    assert {(await client.get("/server")).text for _ in range(4)} == {"replica"}
    await server.stop_cleanly()
    assert len(server.events("replica unavailable")) == 2


async def test_an_expired_cookie_is_ignored(primary: Cluster, standby: Cluster) -> None:
    app = create(primary, standby)
    async with app.app_context():
        name = current_app.config["POSITION_COOKIE_NAME"]
        fresh, old = sign(PURPOSE, 7), signed_before(POSITION_SECONDS + 2, 7)
        text, other = sign(PURPOSE, "7"), sign("another purpose", 7)
        for value, position in ((fresh, 7), (old, 0), (text, 0), (other, 0)):
            async with app.test_request_context("/", headers={"Cookie": f"{name}={value}"}):
                assert position_of_cookie() == position


async def test_a_position_that_no_server_has_is_harmless(
    primary: Cluster, standby: Cluster
) -> None:
    app = create(primary, standby)
    async with app.test_app():
        replica = app.extensions["quart_upsun"].database.replica
        async with asyncio.timeout(SECONDS):
            while not replica.is_usable:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with app.app_context():
            sent = {"Cookie": f"{COOKIE}={sign(PURPOSE, MAX_POSITION)}"}
        client = app.test_client()
        assert await (await client.get("/server", headers=sent)).get_data(as_text=True) == "primary"
        assert await (await client.get("/server")).get_data(as_text=True) == "replica"
        reads = {
            gauge.attributes["quart_upsun.server"]: gauge.read()
            for gauge in gauges(app.extensions["quart_upsun"])
            if gauge.name == "quart_upsun.replica.reads"
        }
        assert reads == {"replica": 1, "primary": 1}


async def test_without_a_replica_no_cookie_is_set(primary: Cluster, standby: Cluster) -> None:
    app = create(primary, None)
    async with app.test_app():
        response = await app.test_client().post("/values/alone?value=1")
        assert response.status_code == 200
        assert "Set-Cookie" not in response.headers
    assert "quart_upsun.web.read_positions" not in str(app.before_request_funcs)


def create(primary: Cluster, standby: Cluster | None) -> Quart:
    return factory(
        Settings(
            database_url=parse_database_url(primary.url()),
            database_replica_url=parse_database_url(standby.url()) if standby else None,
            secret_key=SecretStr("a secret key for tests only"),
            run_jobs=False,
        )
    )


def signed_before(seconds: int, position: int) -> str:
    """Return what was signed some seconds ago."""

    class Signer(TimestampSigner):
        def get_timestamp(self) -> int:
            return super().get_timestamp() - seconds

    keys = list(reversed(current_app.config["TOKEN_KEYS"]))
    value = URLSafeTimedSerializer(keys, salt=PURPOSE, signer=Signer).dumps(position)
    return str(value)
