"""Debian's Chromium, and the real server with a database of its own."""

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from tests.browser.browsing import NewPage, Watch
from tests.conftest import create_database, drop_database
from tests.process.servers import Server, serving
from tests.tools import require

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
    # Patience for a machine that does many things at once.
    expect.set_options(timeout=15_000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path,
            args=ARGUMENTS,
            # As people have it: a page they go back to may come out of memory, as they left it.
            ignore_default_args=["--disable-back-forward-cache"],
            chromium_sandbox=os.geteuid() != 0,  # Chromium refuses to start it as root
        )
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
async def site(server_url: str, migrated_template: str) -> AsyncIterator[Server]:
    """The production server. Its accounts are those of all browser tests of the run."""
    url = await create_database(server_url, migrated_template)
    async with serving(
        1,
        "app.server",
        DATABASE_URL=url,
        # When a browser goes away while Quart opens a file for it, the file is left to the
        # collector. In production it is not Python that serves files.
        PYTHONWARNINGS="default,ignore::ResourceWarning",
    ) as server:
        yield server
        await server.stops()
    await drop_database(server_url, url)


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """Listens to all pages of a test; at its end nothing may have gone wrong in them."""
    watch = Watch()
    yield watch
    assert watch.complaints == []


@pytest.fixture
async def new_page(browser: Browser, site: Server, watch: Watch) -> AsyncIterator[NewPage]:
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
    """A page in a browser of somebody who was never here."""
    return await new_page()
