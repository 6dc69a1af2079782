"""The operations page under load, live and in both color schemes."""

import asyncio
import os
from pathlib import Path

import httpx
import pytest
from playwright.async_api import expect

from tests.browser.browsing import NARROW, WIDE, NewPage, Site, log_in, register
from tests.browser.pages_operations import PATH, add_hours
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")

SECONDS_TO_UPDATE = 30  # twice the interval of the collector, and some time
IMAGES = os.environ.get("OPERATIONS_SCREENSHOTS")
"""A directory for screenshots of the page; none by default."""


async def load(site: Site, requests: int) -> None:
    """Send requests to pages that work and to one that does not exist."""
    async with httpx.AsyncClient(base_url=site.url) as client:
        for number in range(requests):
            await client.get("/about/" if number % 5 else f"/absent/{number}")


async def test_page_updates_itself(new_page: NewPage, site: Site) -> None:
    root = Person()
    await register(site, root, administrator=True)
    page = await new_page()
    await log_in(page, root)
    await page.goto(PATH)
    await expect(page.get_by_role("link", name="Operations")).to_have_attribute(
        "aria-current", "page"
    )
    table = page.locator("#table-latency")
    await table.get_by_text("Table").click()

    async def requests() -> int:
        return int((await page.locator(".figures dd").first.inner_text()).replace(",", ""))

    before = await requests()
    await load(site, 50)
    for _ in range(10 * SECONDS_TO_UPDATE):
        if await requests() >= before + 50:
            break
        await asyncio.sleep(0.1)
    assert await requests() >= before + 50
    await expect(page.locator("#routes")).not_to_contain_text("/absent/")
    # The table that was open stays open.
    await expect(table.get_by_role("columnheader", name="95th percentile")).to_be_visible()


@pytest.mark.skipif(not IMAGES, reason="OPERATIONS_SCREENSHOTS names no directory")
async def test_screenshots(new_page: NewPage, site: Site) -> None:
    assert IMAGES
    root = Person()
    await register(site, root, administrator=True)
    await add_hours(site)
    working = asyncio.create_task(load(site, 3000))
    await asyncio.sleep(20)
    for scheme in ("light", "dark"):
        for size in (WIDE, NARROW):
            page = await new_page(viewport=size, color_scheme=scheme)
            await log_in(page, root)
            for span in ("hour", "weeks"):
                await page.goto(f"{PATH}?span={span}")
                name = f"operations-{span}-{scheme}-{size['width']}.png"
                await page.screenshot(path=Path(IMAGES) / name, full_page=True)
    working.cancel()
