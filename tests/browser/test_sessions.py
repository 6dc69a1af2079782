"""Sessions on the account page, and proofs of identity, in a browser."""

import pytest
from playwright.async_api import expect

from tests.browser.browsing import NewPage, Site, Watch, log_in, register
from tests.browser.pages_sessions import ask_for_proof
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")


@pytest.mark.parametrize("has_javascript", [True, False])
async def test_change_after_a_proof(
    new_page: NewPage, site: Site, watch: Watch, has_javascript: bool
) -> None:
    watch.expected.add(403)
    page = await new_page(java_script_enabled=has_javascript)
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    await ask_for_proof(page, site, ada)
    form = page.locator("#proofForm")
    await form.locator("[name=proof_password]").fill("wrong password")
    await form.get_by_role("button", name="Confirm").click()
    await expect(page.get_by_role("alert")).to_have_text("That is not correct. Try again.")
    await form.locator("[name=proof_password]").fill(ada.password)
    await form.get_by_role("button", name="Confirm").click()
    await page.wait_for_url("**/account/")
    await expect(page.get_by_text(f"Waiting for confirmation: new-{ada.email}")).to_be_visible()


async def test_end_sessions(new_page: NewPage, site: Site) -> None:
    here, elsewhere = await new_page(), await new_page()
    ada = Person()
    await register(site, ada)
    for page in (here, elsewhere):
        await log_in(page, ada)
    await here.goto("/account/")
    sessions = here.locator("#sessions tbody tr")
    await expect(sessions).to_have_count(2)
    await expect(sessions.filter(has_text="This session")).to_have_count(1)
    await sessions.get_by_role("button", name="End session").click()
    await expect(here.get_by_role("status")).to_contain_text("The session was ended.")
    await expect(sessions).to_have_count(1)
    await elsewhere.goto("/account/")
    await elsewhere.wait_for_url("**/login/**")
