"""The administration pages in a browser."""

import pytest
from playwright.async_api import expect

from tests.browser.browsing import NewPage, Site, log_in, register
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")


async def test_administrator_deactivates_user(new_page: NewPage, site: Site) -> None:
    root, ada = Person(), Person()
    await register(site, root, administrator=True)
    await register(site, ada)
    hers = await new_page()
    await log_in(hers, ada)
    page = await new_page()
    await log_in(page, root)
    await page.get_by_role("link", name="Administration").click()
    await page.get_by_role("searchbox").fill(ada.username.upper())
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("link", name=ada.username, exact=True).click()
    await page.get_by_role("button", name="Deactivate").click()
    dialog = page.get_by_role("dialog", name=f"Deactivate {ada.username}?")
    await dialog.get_by_role("button", name="Deactivate user").click()
    await expect(page.get_by_role("status")).to_contain_text("The user was deactivated")
    await expect(page.get_by_role("cell", name="Deactivated by an administrator")).to_be_visible()
    await page.get_by_role("link", name="Audit trail").click()
    await expect(page.get_by_role("cell", name=f"Deactivated by user {root.id}")).to_be_visible()
    await hers.goto("/users/")
    assert hers.url.endswith("/login/?next=/users/")
