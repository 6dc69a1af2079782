"""Access tokens in a browser: create, copy, use and revoke one."""

from playwright.async_api import Page, expect

from tests.browser.browsing import NewPage, Site, log_in, register
from tests.features.factories import Person


async def create_token(page: Page, name: str) -> str:
    """Create a token with the form, and return it."""
    await page.goto("/account/tokens/")
    await page.get_by_label("Name", exact=True).fill(name)
    await page.locator("input[value='me:read']").check()
    await page.get_by_label("Expires after").select_option("7 days")
    await page.get_by_role("button", name="Create token").click()
    return await page.locator("#token").input_value()


async def status_of(page: Page, token: str) -> int:
    response = await page.request.get("/api/v1/me", headers={"X-API-Key": token})
    return response.status


async def test_a_token_is_created_used_and_revoked(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    await page.goto("/account/")
    await page.get_by_role("link", name="Access tokens").click()
    token = await create_token(page, "My laptop")
    answer = await page.request.get("/api/v1/me", headers={"X-API-Key": token})
    assert (await answer.json())["via"] == "token"

    await page.get_by_role("button", name="Revoke token My laptop").click()
    await page.get_by_role("dialog").get_by_role("button", name="Revoke token").click()
    await expect(page.locator("#tokens")).not_to_contain_text("My laptop")
    assert await status_of(page, token) == 401


async def test_revoking_a_token_can_be_cancelled(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    token = await create_token(page, "My laptop")
    revoke = page.get_by_role("button", name="Revoke token My laptop")
    dialog = page.get_by_role("dialog")

    await revoke.click()
    await expect(dialog).to_contain_text("My laptop")
    await expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(dialog).to_have_count(0)
    await expect(revoke).to_be_focused()

    await page.keyboard.press("Enter")
    await expect(dialog).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    assert await status_of(page, token) == 200


async def test_a_token_is_revoked_without_javascript(new_page: NewPage, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    page = await new_page(java_script_enabled=False)
    await log_in(page, ada)
    token = await create_token(page, "My laptop")
    await expect(page.get_by_role("button", name="Copy token")).to_be_hidden()
    await page.get_by_role("button", name="Revoke token My laptop").click()
    await page.get_by_role("dialog").get_by_role("button", name="Revoke token").click()
    assert await status_of(page, token) == 401


async def test_a_token_is_copied_with_feedback(new_page: NewPage, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    page = await new_page(permissions=["clipboard-read", "clipboard-write"])
    await log_in(page, ada)
    token = await create_token(page, "My laptop")
    button = page.locator("[data-copy='token']")
    await expect(button).to_have_text("Copy token")
    await button.click()
    await expect(button).to_have_text("Copied")
    await expect(page.get_by_role("status").filter(has_text="Copied")).to_have_count(1)
    assert await page.evaluate("navigator.clipboard.readText()") == token
    await expect(button).to_have_text("Copy token")


async def test_copy_buttons_are_hidden_without_a_clipboard(new_page: NewPage, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    page = await new_page()
    await page.add_init_script(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
    )
    await log_in(page, ada)
    await create_token(page, "My laptop")
    await expect(page.locator("[data-copy='token']")).to_be_hidden()
