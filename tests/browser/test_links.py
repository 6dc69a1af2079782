"""The reading list in open windows: it fills in, on every instance, and over a deploy."""

import asyncio
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from playwright.async_api import FilePayload, Locator, Page, expect

from app import create_app
from app.links import imports
from app.links.imports import TASK
from app.links.uploads import CHUNK
from app.settings import Settings
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing import runner_of
from tests.browser.browsing import NewPage, Watch, log_in
from tests.conftest import create_database, drop_database
from tests.features.factories import Person
from tests.features.links.test_imports import bookmarks
from tests.process.servers import Server, serving, spawned

pytestmark = pytest.mark.xdist_group("browser")

PAGE = b"""<!doctype html><title>About &lt;i>the&lt;/i> sea</title>
<meta name="description" content="It is wide."><link rel="icon" href="/icon.png">"""
ICON = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
# Whether the picture was shown, not only asked for.
LOADED = "image => image.complete && image.naturalWidth > 0"


class Elsewhere:
    """Somebody else's site, which answers once it is told to."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        await self.answers.wait()
        kind, body = (b"image/png", ICON) if b"/icon.png" in request else (b"text/html", PAGE)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n" % kind)
        writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    site = Elsewhere()
    async with await asyncio.start_server(site.answer, "127.0.0.1", 0) as server:
        site.port = server.sockets[0].getsockname()[1]
        yield site


@asynccontextmanager
async def a_server(database_url: str, port: int = 0) -> AsyncIterator[Server]:
    """A server that leaves the jobs to the worker."""
    variables = {
        "DATABASE_URL": database_url,
        "RUN_JOBS": "false",
        "PORT": str(port),
        "PYTHONWARNINGS": "default,ignore::ResourceWarning",  # as the server of the site
    }
    async with serving(1, "app.server", **variables) as server:
        yield server


@pytest.fixture
async def links_url(server_url: str, migrated_template: str) -> AsyncIterator[str]:
    """A database of its own: jobs of that of the site are done by its server."""
    url = await create_database(server_url, migrated_template)
    yield url
    await drop_database(server_url, url)


def row(page: Page, text: str | re.Pattern[str]) -> Locator:
    return page.locator(".link").filter(has_text=text)


async def test_links_fill_in_on_every_instance_and_over_a_deploy(
    new_page: NewPage, watch: Watch, links_url: str, elsewhere: Elsewhere
) -> None:
    ada = Person()
    database = Database(parse_database_url(links_url), pool_size=1)
    await ada.create(database)
    await database.close()
    async with (
        a_server(links_url) as first,
        spawned(1, "tests.browser.worker", str(elsewhere.port), DATABASE_URL=links_url) as worker,
    ):
        async with a_server(links_url) as second:
            here = await new_page(base_url=first.url)
            await log_in(here, ada)
            await here.goto("/links/")
            await expect(here.get_by_text("Nothing is left to read.")).to_be_visible()
            # The cookie is the same for all ports of a machine.
            there = await here.context.new_page()
            # As if a router had nobody behind it for a moment: the browser itself gives up then.
            watch.expected.add(503)
            await there.route("**/links/events/*", lambda route: route.fulfill(status=503), times=1)
            async with there.expect_response(
                lambda response: "/events/" in response.url and response.status == 200
            ):
                await there.goto(f"{second.url}/links/")
            await there.evaluate("window.neverReloaded = true")
            plain = await new_page(base_url=second.url, java_script_enabled=False)
            await log_in(plain, ada)

            form = here.locator("#saveForm")
            address = f"http://127.0.0.1:{elsewhere.port}/"
            await form.get_by_label("Address").fill(address)
            await form.get_by_label("Tags").fill("Sea")
            await form.get_by_role("button", name="Save").click()
            await expect(here.get_by_text("Saved.")).to_be_visible()
            for page in (here, there):
                await expect(row(page, urlsplit(address).netloc)).to_contain_text("Fetching…")
            await expect(there.get_by_text("Nothing is left to read.")).to_be_hidden()
            await plain.goto("/links/")
            await expect(row(plain, "Fetching…")).to_be_visible()

            await there.locator(".link-title a").focus()
            elsewhere.answers.set()
            for page in (here, there, plain):
                if page is plain:
                    await page.reload()
                link = row(page, "About <i>the</i> sea")
                await expect(link).to_be_visible()
                await expect(link).to_contain_text("It is wide.")
                await expect(link.locator("img")).to_have_js_property("complete", True)
                assert await link.locator("img").evaluate(LOADED)
                await expect(page.get_by_text("Fetching…")).to_have_count(0)
            await expect(there.locator(".link-title a")).to_be_focused()
            await expect(there.locator("#links-status")).to_contain_text("updated")

            await row(plain, "sea").get_by_role("button", name="Archive").click()
            for page in (here, there):
                await expect(page.locator(".link")).to_have_count(0)
                await expect(page.get_by_text("Nothing is left to read.")).to_be_visible()
            await expect(there.get_by_role("main")).to_be_focused()  # its row has gone
            await second.stops()

        # Nobody is there now, and something happens.
        await here.goto("/links/?state=archived")
        await row(here, "sea").get_by_role("button", name="Unarchive").click()
        await here.goto("/links/")
        await expect(row(here, "sea")).to_be_visible()
        await expect(row(there, "sea")).to_have_count(0)
        async with a_server(links_url, second.port) as second:
            await expect(row(there, "sea")).to_be_visible()
            await form.get_by_label("Address").fill(f"{address}next")
            await form.get_by_role("button", name="Save").click()
            newest = there.locator(".link-title a").first
            await expect(newest).to_have_attribute("href", f"{address}next")
            await expect(there.locator(".link")).to_have_count(2)
            assert await there.evaluate("window.neverReloaded")
            await there.close()
            await second.stops()
        await here.close()
        worker.send()
        assert await worker.ended(15) == 0, worker.output
        await first.stops()
    # While nobody was there, it was asked for again and again.
    watch.complaints[:] = [each for each in watch.complaints if "/links/events/" not in each]


# What the page says of an import, each time that it says something else.
NOTE_STATES = """addEventListener("DOMContentLoaded", () => {
  const state = document.querySelector("[data-state]");
  if (!state) return;
  const bar = state.closest("section").querySelector("progress");
  const note = () => said(state.textContent, bar?.value);
  note();
  new MutationObserver(note).observe(state, { childList: true });
})"""


async def test_the_bar_of_an_import_moves(
    new_page: NewPage, links_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "EVENTS_APART", 0.0)
    database = Database(parse_database_url(links_url), pool_size=4)
    ada = await Person().create(database)
    said: list[tuple[str, int | None]] = []
    async with a_server(links_url) as server:
        page = await new_page(base_url=server.url)
        await page.expose_function("said", lambda text, value: said.append((text, value)))
        await page.add_init_script(NOTE_STATES)
        await log_in(page, ada)
        await page.goto("/links/import/")
        content = bookmarks(8000)
        assert len(content) > 2 * CHUNK  # a step of the bar each
        await page.locator("#file").set_input_files(
            FilePayload(name="bookmarks.html", mimeType="text/html", buffer=content)
        )
        async with page.expect_response(lambda response: "/events/" in response.url):
            await page.get_by_role("button", name="Import").click()
        await expect(page.get_by_role("progressbar")).to_be_visible()

        app = create_app(Settings(database_url=database.engine.url))
        await runner_of(app, TASK).run_due()
        # What is over is shown by a page that was loaded again.
        await expect(page.get_by_text("8,000 added, 0 there already")).to_be_visible()
        await expect(page.get_by_role("progressbar")).to_have_count(0)
        await page.wait_for_load_state()
        await page.close()
        await server.stops()
    await database.close()
    assert said[0] == ("waiting", 0)
    assert said[-1] == ("done", None)
    moved = [value for text, value in said if value and text == f"being read, {value} %"]
    assert moved == sorted(moved)
    assert len({*moved}) > 1, said
