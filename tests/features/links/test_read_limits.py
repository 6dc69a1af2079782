"""Rate limits of expensive reads; cheap reads run no extra statement."""

from datetime import timedelta

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from quart_upsun.database import Database
from quart_upsun.policy import policy_of
from quart_upsun.security.models import RateLimit
from tests.features.factories import Person, new_client

READS = ("links-search", "lists-read")
SHARED = "public, max-age=0, s-maxage=300"
LIMITED = {
    "/links/",
    "/lists/<username>/<tag>/",
    "/lists/<username>/<tag>/feed.atom",
}


async def count_limits(database: Database) -> int:
    """Return how many clients have used a read limit."""
    async with database.read() as session:
        count = select(func.count()).where(RateLimit.name.in_(READS))
        return int(await session.scalar(count) or 0)


async def exhaust_limits(database: Database) -> None:
    """Exhaust the read limits of all clients seen so far."""
    async with database.write() as session:
        await session.execute(
            update(RateLimit)
            .where(RateLimit.name.in_(READS))
            .values(used_until=func.now() + timedelta(hours=1))
        )


def test_searches_and_public_reads_are_rate_limited(app: Quart) -> None:
    """Routes that search, or need no login."""
    rules = [rule for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())]
    found = {each.rule for each in rules if policy_of(app.view_functions[each.endpoint]).limit}
    assert found >= LIMITED


async def test_searches_are_limited(
    app: Quart, client: Client, database: Database, ada: Person
) -> None:
    lists = ("/links/", "/links/?q=", "/links/?q=%20", "/links/?tag=a", "/links/?state=all")
    for path in lists:
        assert (await client.get(path)).status_code == 200, path
    assert await count_limits(database) == 0

    assert (await client.get("/links/?q=sea")).status_code == 200
    assert await count_limits(database) == 1
    await exhaust_limits(database)
    page = await client.get("/links/?q=sea")
    assert page.status_code == 429
    assert int(page.headers["Retry-After"]) > 1
    assert "Too many requests" in await page.get_data(as_text=True)
    for path in lists:
        assert (await client.get(path)).status_code == 200, path
    bob, other = await Person().register(app), new_client(app)
    await bob.log_in(other)
    assert (await other.get("/links/?q=sea")).status_code == 200


@pytest.mark.parametrize("name", ["", "feed.atom"])
async def test_public_lists_are_limited_per_client_and_stay_cacheable(
    app: Quart, client: Client, database: Database, ada: Person, name: str
) -> None:
    await client.post("/lists/sea/publish/")
    path, stranger = f"/lists/{ada.username}/sea/{name}", new_client(app)
    response = await stranger.get(path)
    assert (response.status_code, response.headers["Cache-Control"]) == (200, SHARED)
    assert "Set-Cookie" not in response.headers
    await exhaust_limits(database)
    response = await stranger.get(path)
    assert (response.status_code, response.headers["Cache-Control"]) == (429, "private, no-store")
    response = await stranger.get(path, scope_base={"client": ("203.0.113.7", 0)})
    assert (response.status_code, response.headers["Cache-Control"]) == (200, SHARED)
