"""Live updates of the reading list in a browser."""

import pytest
from playwright.async_api import expect

from app.links import queries
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from tests.browser.browsing import NewPage, log_in
from tests.browser.pages_links import row, web_server
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")


async def test_changes_appear_live_in_other_windows(
    new_page: NewPage, own_database_url: str
) -> None:
    database = Database(parse_database_url(own_database_url), pool_size=1)
    ada = await Person().create(database)
    async with database.write() as session:
        await queries.save_link(session, ada.id, "https://example.com/", title="The sea")
    await database.close()
    async with web_server(own_database_url) as server:
        here = await new_page(base_url=server.url)
        await log_in(here, ada)
        await here.goto("/links/")
        there = await here.context.new_page()
        async with there.expect_response(lambda response: "/events/" in response.url):
            await there.goto(f"{server.url}/links/")
        await there.evaluate("window.neverReloaded = true")

        await row(here, "The sea").get_by_role("button", name="Archive").click()
        await expect(row(there, "The sea")).to_have_count(0)
        await expect(there.locator("#linksEmpty")).to_be_visible()

        await here.locator("#saveForm").get_by_label("URL").fill("https://example.com/sky")
        await here.locator("#saveForm").get_by_role("button", name="Save link").click()
        await expect(row(there, "example.com/sky")).to_be_visible()
        assert await there.evaluate("window.neverReloaded")
        await there.close()
        await here.close()
        await server.stop_cleanly()
