"""Visits to the pages of two-factor authentication."""

from playwright.async_api import Page, expect

from tests.browser.browsing import Site, Visit, log_in, register
from tests.browser.test_two_factor import enter_password, start, turn_on
from tests.features.factories import Person


async def log_in_user(page: Page, site: Site) -> Person:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    return ada


async def off(page: Page, site: Site) -> None:
    await log_in_user(page, site)
    await page.goto("/account/two-factor/")


async def setup(page: Page, site: Site) -> None:
    """The page with the QR code, after a missing code."""
    await log_in_user(page, site)
    await start(page)
    await page.get_by_role("button", name="Turn on").click()
    await expect(page.get_by_text("Enter the code.")).to_be_visible()


async def recovery_codes(page: Page, site: Site) -> None:
    await log_in_user(page, site)
    await turn_on(page, await start(page))


async def on(page: Page, site: Site) -> None:
    await recovery_codes(page, site)
    await page.get_by_role("link", name="Done").click()


async def login(page: Page, site: Site) -> None:
    ada = await log_in_user(page, site)
    await turn_on(page, await start(page))
    await page.context.clear_cookies()
    await enter_password(page, ada)


async def login_with_recovery_code(page: Page, site: Site) -> None:
    await login(page, site)
    await page.get_by_role("link", name="Use a recovery code").click()


PAGES: dict[str, Visit] = {
    "two-factor, off": off,
    "two-factor, setup": setup,
    "two-factor, recovery codes": recovery_codes,
    "two-factor, on": on,
    "two-factor, login": login,
    "two-factor, login with a recovery code": login_with_recovery_code,
}
