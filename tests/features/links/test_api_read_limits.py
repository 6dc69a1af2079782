"""The rate limit of searches, which pages and the API share."""

from quart import Quart
from quart.testing import QuartClient as Client

from app.links.api import READ
from quart_upsun.database import Database
from quart_upsun.policy import policy_of
from tests.features.api.resources import token_of
from tests.features.factories import Person
from tests.features.links.test_read_limits import count_limits, exhaust_limits


def test_searches_are_rate_limited(app: Quart) -> None:
    assert policy_of(app.view_functions["links_api.index"]).limit


async def test_pages_and_api_share_the_search_limit(
    app: Quart, client: Client, database: Database, ada: Person
) -> None:
    key = {"X-API-Key": await token_of(app, ada, READ)}
    lists = ("/api/v1/links", "/api/v1/links?q=")
    for path in lists:
        assert (await client.get(path)).status_code == 200, path
    assert await count_limits(database) == 0

    assert (await client.get("/links/?q=sea")).status_code == 200
    assert (await client.get("/api/v1/links?q=sea", headers=key)).status_code == 200
    assert await count_limits(database) == 1
    await exhaust_limits(database)
    assert (await client.get("/links/?q=sea")).status_code == 429
    for headers in ({}, key):  # with session and token
        problem = await client.get("/api/v1/links?q=sea", headers=headers)
        assert (problem.status_code, problem.mimetype) == (429, "application/problem+json")
        assert int(problem.headers["Retry-After"]) > 1
    for path in lists:
        assert (await client.get(path)).status_code == 200, path
