"""Visits to the passkeys pages."""

from playwright.async_api import Page
from sqlalchemy import func, insert

from app.user.passkeys.models import Passkey
from tests.browser.browsing import Site, Visit, log_in, register
from tests.features.factories import Person


async def passkeys(page: Page, site: Site) -> None:
    """The list with long names, and a passkey of another host."""
    ada = Person()
    await register(site, ada)
    shared = {"user_id": ada.id, "public_key": b"", "sign_count": 0, "transports": []}
    async with site.database.write() as session:
        for number, name in enumerate(("Phone", "W" * 80)):
            await session.execute(
                insert(Passkey).values(
                    **shared,
                    name=name,
                    rp_id=("www.example.com", "old.example.com")[number],
                    credential_id=f"{ada.id}-{number}".encode(),
                    is_backed_up=number == 0,
                    last_used_at=func.now() if number == 0 else None,
                )
            )
    await log_in(page, ada)
    await page.goto("/account/passkeys/")


def form(path: str) -> Visit:
    async def visit(page: Page, site: Site) -> None:
        ada = Person()
        await register(site, ada)
        await log_in(page, ada)
        await page.goto(path)

    return visit


PAGES: dict[str, Visit] = {"passkeys": passkeys, "new passkey": form("/account/passkeys/new/")}
