"""An access token in a browser, from the form to its use."""

from playwright.async_api import Page, expect

from tests.browser.browsing import Site, log_in, register
from tests.features.factories import Person


async def test_a_token_is_made_used_and_deleted(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    await page.goto("/account/")
    await page.get_by_role("link", name="Access tokens").click()
    await page.get_by_label("Name", exact=True).fill("My laptop")
    await page.locator('[name=scopes][value="me:read"]').check()
    await page.get_by_label("It ends after").select_option("7 days")
    await page.get_by_role("button", name="Make the token").click()
    token = await page.get_by_label("The token", exact=True).input_value()
    answer = await page.request.get("/api/v1/me", headers={"X-API-Key": token})
    assert (await answer.json())["via"] == "token"
    await page.get_by_role("button", name="Delete the token My laptop").click()
    await expect(page.get_by_text("The token was deleted.")).to_be_visible()
    answer = await page.request.get("/api/v1/me", headers={"X-API-Key": token})
    assert answer.status == 401
