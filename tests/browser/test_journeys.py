"""Flows that involve emails, through a real mail server."""

import pytest
from playwright.async_api import Page, expect

from app.user import accounts
from quart_upsun.testing.servers import serving
from tests.browser.browsing import NewPage, Site, Watch, log_in, register
from tests.features.factories import SITE_NAME, Person

pytestmark = pytest.mark.xdist_group("browser")

NEW_PASSWORD = "staple battery horse"


async def test_register_and_confirm_email_address(page: Page, site: Site) -> None:
    ada = Person()
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    for name, value in ada.registration.items():
        await form.locator(f"[name={name}]").fill(value)
    await form.get_by_role("button", name="Register").click()
    await expect(page.get_by_role("status")).to_contain_text("confirm your email address")
    await log_in(page, ada)
    await expect(page.get_by_text(f"{ada.email} is not confirmed yet.")).to_be_visible()
    await page.goto(await site.link(ada, "Confirm your email address"))
    await page.get_by_role("button", name="Confirm email address").click()
    await page.wait_for_url("/account/")
    await expect(page.get_by_role("status")).to_contain_text("Your email address is confirmed.")
    await expect(page.get_by_text("is not confirmed yet")).to_have_count(0)


async def test_reset_forgotten_password(new_page: NewPage, site: Site, watch: Watch) -> None:
    watch.expected.add(410)
    ada = Person()
    await register(site, ada)
    elsewhere = await new_page()
    await log_in(elsewhere, ada)

    page = await new_page()
    await page.goto("/login/")
    await page.get_by_role("link", name="Forgot your password?").click()
    await page.locator("#forgotForm").get_by_label("Email").fill(ada.email)
    await page.get_by_role("button", name="Send reset link").click()
    await expect(page.get_by_role("status")).to_contain_text("If there is an account")
    path = await site.link(ada, "Reset your password")
    await page.goto(path)
    form = page.locator("#resetForm")
    await form.get_by_label("New password").fill(NEW_PASSWORD)
    await form.get_by_label("Confirm password").fill(NEW_PASSWORD)
    await form.get_by_role("button", name="Reset password").click()
    await page.wait_for_url("/login/")
    await log_in(page, Person(ada.username, ada.email, NEW_PASSWORD))

    await elsewhere.goto("/users/")
    assert elsewhere.url.endswith("/login/?next=/users/")
    await elsewhere.goto(path)
    await expect(elsewhere.get_by_role("heading", level=1)).to_contain_text("has expired")
    await site.mailbox.wait_for_mail(ada.email, "Your password was changed")


async def test_change_email_address(page: Page, site: Site) -> None:
    ada, old = Person(), ""
    await register(site, ada)
    await log_in(page, ada)
    await page.get_by_role("link", name=ada.username).click()
    old, ada.email = ada.email, f"new-{ada.email}"
    form = page.locator("#emailForm")
    await form.get_by_label("New email").fill(ada.email)
    await form.get_by_role("button", name="Change email").click()
    await expect(page.get_by_text(f"Waiting for confirmation: {ada.email}")).to_be_visible()
    await site.mailbox.wait_for_mail(old, "Your email address is about to change")
    await page.goto(await site.link(ada, "Confirm your email address"))
    await page.get_by_role("button", name="Confirm email address").click()
    await page.wait_for_url("/account/")
    await expect(page.locator("#emailForm").get_by_text(ada.email, exact=True)).to_be_visible()
    await expect(page.get_by_text("Waiting for confirmation")).to_have_count(0)


async def test_invite_someone(page: Page, site: Site, watch: Watch) -> None:
    watch.expected.add(403)
    ada, bob = Person(), Person()
    await register(site, ada, confirmed=False)
    await log_in(page, ada)
    await page.goto("/invite/")
    await expect(page.get_by_role("heading", level=1)).to_have_text(
        "Confirm your email address first"
    )
    async with site.database.write() as session:
        await accounts.confirm_email(session, ada.id, ada.email)
    await page.goto("/users/")
    await page.get_by_role("link", name="Invite someone").click()
    await page.get_by_label("Email").fill(bob.email)
    await page.get_by_role("button", name="Send invitation").click()
    await expect(page.get_by_role("status")).to_contain_text("The invitation was sent.")
    assert await site.link(bob, f"{ada.username} invited you to {SITE_NAME}") == "/register/"


async def test_development_server_shows_stored_emails(new_page: NewPage) -> None:
    async with serving(1, "app.server", FLASK_DEBUG="1") as server:
        page = await new_page(base_url=server.url)
        await page.goto("/dev/mail/")
        await expect(
            page.get_by_role("heading", level=1, name="Development emails")
        ).to_be_visible()
        await server.stop_cleanly()


async def test_download_data_and_delete_account(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    await page.goto("/account/")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download your data").click()
    assert (await download.value).suggested_filename == "my-data.json"
    form = page.locator("#deleteForm")
    await form.get_by_role("button", name="Delete account").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete account").click()
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("Your account was deleted.")
    await site.mailbox.wait_for_mail(ada.email, "Your account was deleted")
