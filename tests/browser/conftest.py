"""Fixtures: Chromium, and the production server with its own database."""

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect
from sqlalchemy import delete

from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.security.models import RateLimit
from quart_upsun.testing.databases import create_database, drop_database
from quart_upsun.testing.programs import require
from quart_upsun.testing.servers import serving
from quart_upsun.testing.smtp import mail_server
from tests.browser.browsing import ORIGIN, NewPage, Site, Watch

ARGUMENTS = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    path = require("chromium")
    # A generous timeout for busy machines.
    expect.set_options(timeout=15_000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path,
            args=ARGUMENTS,
            # Playwright disables the back/forward cache by default; users have it.
            ignore_default_args=["--disable-back-forward-cache"],
            chromium_sandbox=os.geteuid() != 0,  # the sandbox does not start as root
        )
        yield browser
        await browser.close()


@pytest.fixture
async def own_database_url(server_url: str, migrated_template: str) -> AsyncIterator[str]:
    """Create a separate database, because the server of `site` runs the jobs of its own."""
    url = await create_database(server_url, migrated_template)
    yield url
    await drop_database(server_url, url)


@pytest.fixture(scope="session")
async def site(server_url: str, migrated_template: str) -> AsyncIterator[Site]:
    """Start the production server. All browser tests share it and its accounts."""
    url = await create_database(server_url, migrated_template)
    database = Database(parse_database_url(url), pool_size=2)
    async with (
        mail_server() as mailbox,
        serving(
            1,
            "app.server",
            DATABASE_URL=url,
            MAIL_URL=mailbox.url,
            PUBLIC_ORIGIN=ORIGIN,
            # If a browser disconnects while Quart opens a file, the garbage collector closes it. In
            # production, Python does not serve files.
            PYTHONWARNINGS="default,ignore::ResourceWarning",
        ) as server,
    ):
        yield Site(server, database, mailbox)
        await server.stop_cleanly()
    await database.close()
    await drop_database(server_url, url)


@pytest.fixture(autouse=True)
async def fresh_limits(site: Site) -> None:
    """Reset the rate limits: all tests share one client address."""
    async with site.database.write() as session:
        await session.execute(delete(RateLimit))


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """Fail the test if its pages have any error that it does not expect."""
    watch = Watch()
    yield watch
    assert watch.complaints == []


@pytest.fixture
async def new_page(browser: Browser, site: Site, watch: Watch) -> AsyncIterator[NewPage]:
    contexts: list[BrowserContext] = []

    async def new_page(**options: Any) -> Page:
        context = await browser.new_context(
            **{"base_url": site.url, "reduced_motion": "reduce", **options}
        )
        contexts.append(context)
        watch.listen(context)
        return await context.new_page()

    yield new_page
    for context in contexts:
        await context.close()


@pytest.fixture
async def page(new_page: NewPage) -> Page:
    """Open a page in a new browser context, without cookies."""
    return await new_page()
