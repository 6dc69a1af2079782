"""What people do with a mail in their hand, through a real mail server."""

import pytest
from playwright.async_api import Page, expect

from app.user import accounts
from quart_upsun.testing.servers import serving
from tests.browser.browsing import NewPage, Site, Watch, log_in, register
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")

NEW_PASSWORD = "staple battery horse"


async def test_registration_and_confirmation(page: Page, site: Site) -> None:
    ada = Person()
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    for name, value in ada.registration.items():
        await form.locator(f"[name={name}]").fill(value)
    await form.get_by_role("button", name="Register").click()
    await expect(page.get_by_role("status")).to_contain_text("follow the link")
    await log_in(page, ada)
    await expect(page.get_by_text(f"{ada.email} is not confirmed yet.")).to_be_visible()
    await page.goto(await site.link(ada, "Confirm your address"))
    await page.get_by_role("button", name="Confirm").click()
    await page.wait_for_url("/account/")
    await expect(page.get_by_role("status")).to_contain_text("Your address is confirmed.")
    await expect(page.get_by_text("is not confirmed yet")).to_have_count(0)


async def test_a_forgotten_password(new_page: NewPage, site: Site, watch: Watch) -> None:
    watch.expected.add(410)
    ada = Person()
    await register(site, ada)
    elsewhere = await new_page()
    await log_in(elsewhere, ada)

    page = await new_page()
    await page.goto("/login/")
    await page.get_by_role("link", name="Forgotten your password?").click()
    await page.locator("#forgotForm").get_by_label("address").fill(ada.email)
    await page.get_by_role("button", name="Send the link").click()
    await expect(page.get_by_role("status")).to_contain_text("If there is an account")
    path = await site.link(ada, "A new password")
    await page.goto(path)
    form = page.locator("#resetForm")
    await form.get_by_label("Password", exact=True).fill(NEW_PASSWORD)
    await form.get_by_label("Repeat the password").fill(NEW_PASSWORD)
    await form.get_by_role("button", name="Set the password").click()
    await page.wait_for_url("/login/")
    await log_in(page, Person(ada.username, ada.email, NEW_PASSWORD))

    await elsewhere.goto("/users/")
    assert elsewhere.url.endswith("/login/?next=/users/")
    await elsewhere.goto(path)
    await expect(elsewhere.get_by_role("heading", level=1)).to_contain_text("does not work")
    await site.mailbox.mail(ada.email, "Your password was changed")


async def test_another_address(page: Page, site: Site) -> None:
    ada, old = Person(), ""
    await register(site, ada)
    await log_in(page, ada)
    await page.get_by_role("link", name=ada.username).click()
    old, ada.email = ada.email, f"new-{ada.email}"
    form = page.locator("#emailForm")
    await form.get_by_label("New address").fill(ada.email)
    await form.get_by_label("Current password").fill(ada.password)
    await form.get_by_role("button", name="Change the address").click()
    await expect(page.get_by_text(f"To be confirmed: {ada.email}")).to_be_visible()
    await site.mailbox.mail(old, "Your address is about to change")
    await page.goto(await site.link(ada, "Confirm your address"))
    await page.get_by_role("button", name="Confirm").click()
    await page.wait_for_url("/account/")
    await expect(page.locator("#emailForm").get_by_text(ada.email, exact=True)).to_be_visible()
    await expect(page.get_by_text("To be confirmed")).to_have_count(0)


async def test_an_invitation(page: Page, site: Site, watch: Watch) -> None:
    watch.expected.add(403)
    ada, bob = Person(), Person()
    await register(site, ada, confirmed=False)
    await log_in(page, ada)
    await page.goto("/invite/")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Confirm your address first")
    async with site.database.write() as session:
        await accounts.confirm_email(session, ada.id, ada.email)
    await page.goto("/users/")
    await page.get_by_role("link", name="Invite somebody").click()
    await page.get_by_label("Their address").fill(bob.email)
    await page.get_by_role("button", name="Send the invitation").click()
    await expect(page.get_by_role("status")).to_contain_text("The invitation is on its way.")
    assert await site.link(bob, "An invitation") == "/register/"


async def test_a_laptop_shows_what_it_would_have_sent(new_page: NewPage) -> None:
    async with serving(1, "app.server", FLASK_DEBUG="1") as server:
        page = await new_page(base_url=server.url)
        await page.goto("/dev/mail/")
        await expect(page.get_by_text("Here, on a laptop, no mail leaves.")).to_be_visible()
        await server.stops()


async def test_the_end_of_an_account(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    await page.goto("/account/")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download your data").click()
    assert (await download.value).suggested_filename == "my-data.json"
    form = page.locator("#deleteForm")
    await form.get_by_label("Current password").fill("not the password")
    await form.get_by_role("button", name="Delete the account").click()
    await expect(form.get_by_text("This is not your password.")).to_be_visible()
    await form.get_by_label("Current password").fill(ada.password)
    await form.get_by_role("button", name="Delete the account").click()
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("Your account was deleted.")
    await site.mailbox.mail(ada.email, "Your account was deleted")


async def test_administrators_look_after_users(new_page: NewPage, site: Site) -> None:
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
    await expect(page.get_by_role("status")).to_contain_text("The account is deactivated")
    await expect(page.get_by_role("cell", name="Deactivated by an administrator")).to_be_visible()
    await page.get_by_role("link", name="Audit trail").click()
    await expect(page.get_by_role("cell", name=f"Deactivated by user {root.id}")).to_be_visible()
    await hers.goto("/users/")
    assert hers.url.endswith("/login/?next=/users/")
