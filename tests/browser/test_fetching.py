"""Fetched pages in open windows: links fill in, on every instance, and over a deploy."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from playwright.async_api import expect

from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.servers import spawned
from tests.browser.browsing import NewPage, Watch, log_in
from tests.browser.pages_links import row, web_server
from tests.features.factories import Person

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


async def test_links_fill_in_on_every_instance_and_over_a_deploy(
    new_page: NewPage, watch: Watch, own_database_url: str, elsewhere: Elsewhere
) -> None:
    ada = Person()
    database = Database(parse_database_url(own_database_url), pool_size=1)
    await ada.create(database)
    await database.close()
    async with (
        web_server(own_database_url) as first,
        spawned(
            1, "tests.browser.worker", str(elsewhere.port), DATABASE_URL=own_database_url
        ) as worker,
    ):
        async with web_server(own_database_url) as second:
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
        async with web_server(own_database_url, second.port) as second:
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
