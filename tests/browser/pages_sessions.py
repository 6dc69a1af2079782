"""Visits of the page that asks for a proof of identity, and of the list of sessions."""

from datetime import timedelta

from playwright.async_api import Page, expect
from sqlalchemy import func, update

from app.user.models import UserSession
from app.user.proofs import PROOF_SECONDS
from tests.browser.browsing import Site, Visit, log_in, register
from tests.features.factories import Person


async def outdate_proofs(site: Site, person: Person) -> None:
    """Make the proofs of a user older than 15 minutes."""
    async with site.database.write() as session:
        await session.execute(
            update(UserSession)
            .where(UserSession.user_id == person.id)
            .values(proved_at=func.now() - timedelta(seconds=PROOF_SECONDS + 1))
        )


async def ask_for_proof(page: Page, site: Site, person: Person) -> None:
    """Submit a new email address when the proof of the user is too old."""
    await outdate_proofs(site, person)
    await page.goto("/account/")
    form = page.locator("#emailForm")
    await form.get_by_label("New email").fill(f"new-{person.email}")
    await form.get_by_role("button", name="Change email").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Confirm your identity")


async def proof(page: Page, site: Site) -> None:
    """The page after a wrong password."""
    person = Person()
    await register(site, person)
    await log_in(page, person)
    await ask_for_proof(page, site, person)
    await page.locator("#proofForm").get_by_label("Password").fill("wrong password")
    await page.locator("#proofForm").get_by_role("button", name="Confirm").click()
    await expect(page.get_by_role("alert")).to_have_text("That is not correct. Try again.")


PAGES: dict[str, Visit] = {"proof": proof}
