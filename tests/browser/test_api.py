"""The API reference in a browser: Swagger UI under the content security policy."""

from playwright.async_api import Page, expect

from tests.browser.browsing import Site, log_in, register
from tests.features.factories import Person


async def test_docs_can_execute_a_request(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    await page.goto("/docs")
    operation = page.locator("#operations-Account-get_me")
    await operation.get_by_role("button").first.click()
    await operation.get_by_role("button", name="Try it out").click()
    await operation.get_by_role("button", name="Execute").click()
    await expect(operation.locator(".live-responses-table")).to_contain_text(ada.email)
