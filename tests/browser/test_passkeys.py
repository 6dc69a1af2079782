"""Passkeys in Chromium, with its virtual authenticator."""

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from playwright.async_api import CDPSession, Page, expect
from sqlalchemy import delete, func, update

from app.user.models import UserSession
from app.user.passkeys.models import Passkey
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.servers import serving
from quart_upsun.testing.smtp import mail_server
from tests.browser.browsing import NewPage, Site, Watch, log_in, press_tab, register, tab_to
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")

PASSKEYS = "/account/passkeys/"


@pytest.fixture
async def laptop_site(own_database_url: str) -> AsyncIterator[Site]:
    """A server as `make run` starts it: without a public origin, at 127.0.0.1."""
    database = Database(parse_database_url(own_database_url), pool_size=2)
    async with (
        mail_server() as mailbox,
        serving(
            1,
            "app.server",
            DATABASE_URL=own_database_url,
            MAIL_URL=mailbox.url,
            PORT=str(free_port()),
            PYTHONWARNINGS="default,ignore::ResourceWarning",
        ) as server,
    ):
        yield Site(server, database, mailbox)
        await server.stop_cleanly()
    await database.close()


def free_port() -> int:
    """Return a port that the public origin can name before the server starts."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def origin_of(site: Site) -> str:
    return f"http://localhost:{site.server.port}"


@dataclass
class Device:
    """A virtual authenticator. https://chromedevtools.github.io/devtools-protocol/tot/WebAuthn/"""

    session: CDPSession
    id: str

    async def set_user_verified(self, is_verified: bool) -> None:
        await self._send("setUserVerified", isUserVerified=is_verified)

    async def credentials(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._send("getCredentials"))["credentials"]
        return found

    async def _send(self, name: str, **parameters: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self.session.send(
            f"WebAuthn.{name}", {"authenticatorId": self.id, **parameters}
        )
        return answer


async def add_device(page: Page) -> Device:
    """Add a device with a screen lock, which the user always unlocks."""
    session = await page.context.new_cdp_session(page)
    await session.send("WebAuthn.enable", {"enableUI": False})
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    added = await session.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    return Device(session, added["authenticatorId"])


@pytest.fixture
async def page(new_page: NewPage, laptop_site: Site) -> Page:
    return await new_page(base_url=origin_of(laptop_site))


@pytest.fixture
async def device(page: Page) -> Device:
    return await add_device(page)


@pytest.fixture
async def ada(laptop_site: Site) -> Person:
    ada = Person()
    await register(laptop_site, ada)
    return ada


async def create_passkey(page: Page, name: str = "Laptop") -> None:
    await page.goto(f"{PASSKEYS}new/")
    await page.get_by_label("Name").fill(name)
    await page.get_by_role("button", name="Create passkey").click()
    await page.wait_for_url(f"**{PASSKEYS}")
    await expect(page.get_by_role("status")).to_contain_text(f"The passkey “{name}” was added.")


async def disable_autofill(page: Page) -> None:
    """Leave only the button: the device would confirm the request of the autofill at once."""
    await page.add_init_script(
        "PublicKeyCredential.isConditionalMediationAvailable = async () => false"
    )


async def log_out(page: Page) -> None:
    await page.goto("/about/")
    await page.get_by_role("button", name="Log out").click()
    await page.wait_for_url("**/")


async def test_a_passkey_is_added_used_renamed_and_removed(
    page: Page, ada: Person, device: Device
) -> None:
    await log_in(page, ada)
    await page.goto("/account/")
    await page.get_by_role("link", name="Passkeys").click()
    await page.get_by_role("link", name="Add a passkey").click()
    await page.get_by_label("Name").fill("Laptop")
    await page.get_by_role("button", name="Create passkey").click()
    await page.wait_for_url(f"**{PASSKEYS}")
    (credential,) = await device.credentials()
    assert credential["isResidentCredential"]
    assert credential["rpId"] == "localhost"
    await log_out(page)

    await disable_autofill(page)
    await page.goto("/login/?next=/about/")
    await page.get_by_role("button", name="Log in with a passkey").click()
    await page.wait_for_url("**/about/")
    await expect(page.get_by_text(f"Logged in as {ada.username}")).to_be_visible()

    await page.goto(PASSKEYS)
    row = page.locator("#passkeys tbody tr")
    await expect(row).not_to_contain_text("Never")
    await row.get_by_role("link", name="Rename passkey Laptop").click()
    await page.get_by_label("Name").fill("Desk")
    await page.get_by_role("button", name="Save name").click()
    await page.get_by_role("button", name="Remove passkey Desk").click()
    await page.get_by_role("dialog").get_by_role("button", name="Remove passkey").click()
    await expect(page.get_by_text("No passkeys yet.")).to_be_visible()


async def test_the_autofill_of_the_login_page_offers_passkeys(
    page: Page, ada: Person, device: Device
) -> None:
    await log_in(page, ada)
    await create_passkey(page)
    await log_out(page)
    await page.goto("/login/")  # the device answers as if the user had chosen the passkey
    await page.wait_for_url("**/users/")
    await expect(page.get_by_text(f"Logged in as {ada.username}")).to_be_visible()


async def test_login_with_a_passkey_can_be_kept(page: Page, ada: Person, device: Device) -> None:
    await log_in(page, ada)
    await create_passkey(page)
    await disable_autofill(page)
    for is_kept in (False, True):
        await log_out(page)
        await page.goto("/login/")
        if is_kept:
            await page.get_by_label("Keep me logged in").check()
        await page.get_by_role("button", name="Log in with a passkey").click()
        await page.wait_for_url("**/users/")
        (cookie,) = [
            each for each in await page.context.cookies() if each["name"].endswith("-login")
        ]
        assert (cookie["expires"] > 0) == is_kept


async def test_a_passkey_after_the_password(page: Page, ada: Person, device: Device) -> None:
    await log_in(page, ada)
    await create_passkey(page)
    await page.get_by_role("button", name="Require a passkey after the password").click()
    await expect(page.get_by_role("status")).to_contain_text("now also need a passkey")
    await log_out(page)

    form = page.get_by_role("navigation").locator("form#loginForm")
    await form.get_by_label("Username").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("heading", name="Use a passkey")).to_be_visible()
    # Not in the page: the autofill of the login page would use the passkey.
    account = await page.request.get("/account/")
    assert account.url.endswith("/login/?next=/account/")  # not logged in yet
    await page.get_by_role("button", name="Use a passkey").click()
    await page.wait_for_url("**/users/")


async def test_a_passkey_confirms_the_identity(
    page: Page, laptop_site: Site, watch: Watch, ada: Person, device: Device
) -> None:
    watch.expected.add(403)
    await log_in(page, ada)
    await create_passkey(page)
    async with laptop_site.database.write() as session:
        old = func.now() - timedelta(minutes=16)
        await session.execute(update(UserSession).values(proved_at=old))
    await page.goto(PASSKEYS)
    await page.get_by_role("button", name="Remove passkey Laptop").click()
    await page.get_by_role("dialog").get_by_role("button", name="Remove passkey").click()
    await expect(page.get_by_role("heading", name="Confirm your identity")).to_be_visible()
    await page.get_by_role("button", name="Use a passkey").click()
    await expect(page.get_by_text("No passkeys yet.")).to_be_visible()


async def test_an_expired_proof_is_asked_for_again(
    page: Page, laptop_site: Site, watch: Watch, ada: Person, device: Device
) -> None:
    """While the page that adds a passkey was open."""
    watch.expected.add(403)
    await log_in(page, ada)
    await page.goto(f"{PASSKEYS}new/")
    async with laptop_site.database.write() as session:
        old = func.now() - timedelta(minutes=16)
        await session.execute(update(UserSession).values(proved_at=old))
    await page.get_by_label("Name").fill("Laptop")
    await page.get_by_role("button", name="Create passkey").click()
    await expect(page.get_by_role("heading", name="Confirm your identity")).to_be_visible()
    assert await device.credentials() == []


async def test_refused_and_canceled_requests_are_explained(
    page: Page, laptop_site: Site, watch: Watch, ada: Person, device: Device
) -> None:
    watch.expected.add(403)
    await log_in(page, ada)
    await device.set_user_verified(False)  # as if the user did not unlock the device
    await page.goto(f"{PASSKEYS}new/")
    await page.get_by_label("Name").fill("Laptop")
    await page.get_by_role("button", name="Create passkey").click()
    message = page.locator("[data-passkey-message]")
    await expect(message).to_have_text("The request was canceled or timed out. Try again.")
    await device.set_user_verified(True)
    await page.get_by_role("button", name="Create passkey").click()
    await page.wait_for_url(f"**{PASSKEYS}")

    await page.goto(f"{PASSKEYS}new/")  # the device has one already
    await page.get_by_label("Name").fill("Again")
    await page.get_by_role("button", name="Create passkey").click()
    await expect(message).to_have_text("This device already has a passkey for your account.")

    await disable_autofill(page)
    await log_out(page)
    async with laptop_site.database.write() as session:
        await session.execute(delete(Passkey))
    await page.goto("/login/")
    await page.get_by_role("button", name="Log in with a passkey").click()
    await expect(page.get_by_role("alert")).to_contain_text("This passkey is not registered")


async def test_address_without_passkeys_is_explained(
    new_page: NewPage, laptop_site: Site, ada: Person
) -> None:
    """Browsers allow no passkeys at 127.0.0.1, which `make run` prints."""
    page = await new_page(base_url=laptop_site.url)
    await log_in(page, ada)
    await page.goto(f"{PASSKEYS}new/")
    message = page.locator("[data-passkey-message]")
    origin = origin_of(laptop_site)
    await expect(message).to_have_text(f"Passkeys do not work at {laptop_site.url}. Open {origin}.")
    await expect(message.get_by_role("link")).to_have_attribute("href", f"{origin}{PASSKEYS}new/")
    await expect(page.get_by_role("button", name="Create passkey")).to_have_count(0)


async def test_browser_without_passkeys(new_page: NewPage, laptop_site: Site, ada: Person) -> None:
    page = await new_page(base_url=origin_of(laptop_site))
    await page.add_init_script("delete window.PublicKeyCredential")
    await page.goto("/login/")
    await expect(page.get_by_role("button", name="Log in with a passkey")).to_have_count(0)
    await log_in(page, ada)
    await page.goto(f"{PASSKEYS}new/")
    await expect(page.locator("[data-passkey-message]")).to_have_text(
        "This browser does not support passkeys. Update it, or use another one."
    )


async def test_without_javascript(new_page: NewPage, laptop_site: Site, ada: Person) -> None:
    page = await new_page(base_url=origin_of(laptop_site), java_script_enabled=False)
    await page.goto("/login/")
    await expect(page.get_by_role("button", name="Log in with a passkey")).to_have_count(0)
    await log_in(page, ada)
    await page.goto(f"{PASSKEYS}new/")
    await expect(page.get_by_role("button", name="Create passkey")).to_have_count(0)
    await expect(page.get_by_text("Passkeys need JavaScript.")).to_be_visible()


async def test_passkeys_with_the_keyboard_only(page: Page, ada: Person, device: Device) -> None:
    await log_in(page, ada)
    await page.goto(f"{PASSKEYS}new/")
    await tab_to(page, "Name")
    await page.keyboard.type("Laptop")
    assert await press_tab(page) == "Create passkey"
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**{PASSKEYS}")
    await page.goto(f"{PASSKEYS}new/")
    await page.get_by_label("Name").fill("Again")
    await page.keyboard.press("Enter")  # in the field
    await expect(page.locator("[data-passkey-message]")).to_contain_text("already has a passkey")
