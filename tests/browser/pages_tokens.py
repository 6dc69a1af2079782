"""Visits to the page of access tokens."""

from playwright.async_api import Page, expect

from tests.browser.browsing import Site, Visit, log_in, register
from tests.features.factories import Person


async def refused_token(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    await page.goto("/account/tokens/")
    await page.get_by_role("button", name="Create token").click()
    await expect(page.get_by_text("Enter a name")).to_be_visible()


PAGES: dict[str, Visit] = {"refused access token": refused_token}
