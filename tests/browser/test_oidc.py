"""Login with a provider in a browser, with `oidc-provider-mock` as the provider."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.servers import spawned
from tests.browser.browsing import NARROW, WIDE, log_in
from tests.features.factories import Person

NAME = "Acme"


def free_port() -> int:
    """Return a free port. The callback address must be known before the server starts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
async def provider() -> AsyncIterator[str]:
    """Start the mock, and return its origin."""
    port = free_port()
    users = ['{"sub": "ada", "email": "ada@example.com", "email_verified": true, "name": "Ada"}']
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port)),
        *(part for user in users for part in ("--user-claims", user)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            break
    yield f"http://127.0.0.1:{port}"
    process.kill()
    await process.wait()


@pytest.fixture
async def people(own_database_url: str) -> AsyncIterator[Database]:
    database = Database(parse_database_url(own_database_url), pool_size=1)
    yield database
    await database.close()


@pytest.fixture
async def page(browser: Browser, own_database_url: str, provider: str) -> AsyncIterator[Page]:
    """Open a page of a site that knows the provider."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with spawned(
        1,
        "app.server",
        PORT=str(port),
        PUBLIC_ORIGIN=origin,
        DATABASE_URL=own_database_url,
        PYTHONWARNINGS="ignore",
        OIDC_ACME_CLIENT_ID="client",
        OIDC_ACME_CLIENT_SECRET="secret",
        OIDC_ACME_DISCOVERY_URL=f"{provider}/.well-known/openid-configuration",
        OIDC_GOOGLE_CLIENT_ID="client",
        OIDC_GOOGLE_CLIENT_SECRET="secret",
    ) as server:
        await server.wait_until_serving(1)
        context = await browser.new_context(base_url=origin, reduced_motion="reduce")
        yield await context.new_page()
        await context.close()


async def shoot(page: Page, name: str) -> None:
    """Take screenshots, if SCREENSHOTS names a directory. No page scrolls sideways."""
    directory = os.environ.get("SCREENSHOTS")
    for size in (WIDE, NARROW):
        await page.set_viewport_size(size)
        for scheme in ("light", "dark") if directory else ():
            await page.emulate_media(color_scheme=scheme)
            path = Path(directory or "") / f"{name}-{size['width']}-{scheme}.png"
            await page.screenshot(path=path, full_page=True)
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= size["width"], (name, width)
    await page.set_viewport_size(WIDE)


async def choose(page: Page, subject: str = "ada") -> None:
    """Log in at the provider."""
    await page.get_by_role("button", name=subject, exact=True).first.click()


async def test_a_provider_creates_an_account_that_sets_no_password(page: Page) -> None:
    await page.goto("/login/?next=/account/")
    await shoot(page, "login")
    await page.goto("/register/")
    await shoot(page, "register")
    await page.goto("/login/?next=/account/")
    button = page.get_by_role("button", name=f"Log in with {NAME}")
    await button.focus()
    await page.keyboard.press("Enter")
    await choose(page)
    await page.wait_for_url("**/account/")
    await expect(page.locator("main")).to_contain_text("ada@example.com")
    await page.get_by_role("link", name="Linked logins").click()
    await expect(page.locator("#logins")).to_contain_text(NAME)
    await shoot(page, "logins")
    await page.get_by_role("button", name=f"Unlink {NAME}").click()
    await page.get_by_role("dialog").get_by_role("button", name="Unlink login").click()
    await expect(page.locator("main")).to_contain_text("your only way to log in")
    await page.goto("/account/")
    await shoot(page, "account")


async def test_an_existing_account_is_linked_by_its_owner(page: Page, people: Database) -> None:
    ada = await Person("ada", "ada@example.com").create(people)
    await page.goto("/login/")
    await page.get_by_role("button", name=f"Log in with {NAME}").click()
    await choose(page)
    await expect(page.get_by_role("heading", level=1)).to_have_text(
        "This email address already has an account"
    )
    await shoot(page, "conflict")
    await page.get_by_role("link", name="Go to the login page").click()
    await log_in(page, ada)
    await page.goto("/account/providers/")
    await page.get_by_role("button", name=f"Link {NAME}").click()
    await choose(page)
    await expect(page.locator("main")).to_contain_text(f"You can now log in with {NAME}.")
    await page.context.clear_cookies()
    await page.goto("/login/")
    await page.get_by_role("button", name=f"Log in with {NAME}").click()
    await choose(page)
    await page.wait_for_url("**/users/")
