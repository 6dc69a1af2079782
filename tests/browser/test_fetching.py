"""Live updates of fetched links, across instances and through a deploy."""

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
# Whether the image was rendered, not only requested.
LOADED = "image => image.complete && image.naturalWidth > 0"


class ExternalSite:
    """A third-party site that responds once `can_respond` is set."""

    def __init__(self) -> None:
        self.can_respond = asyncio.Event()
        self.port = 0

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        await self.can_respond.wait()
        kind, body = (b"image/png", ICON) if b"/icon.png" in request else (b"text/html", PAGE)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n" % kind)
        writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()


@pytest.fixture
async def external_site() -> AsyncIterator[ExternalSite]:
    site = ExternalSite()
    async with await asyncio.start_server(site.respond, "127.0.0.1", 0) as server:
        site.port = server.sockets[0].getsockname()[1]
        yield site


async def test_fetched_links_update_live_on_every_instance_and_through_a_deploy(
    new_page: NewPage, watch: Watch, own_database_url: str, external_site: ExternalSite
) -> None:
    ada = Person()
    database = Database(parse_database_url(own_database_url), pool_size=1)
    await ada.create(database)
    await database.close()
    async with (
        web_server(own_database_url) as first,
        spawned(
            1, "tests.browser.worker", str(external_site.port), DATABASE_URL=own_database_url
        ) as worker,
    ):
        async with web_server(own_database_url) as second:
            here = await new_page(base_url=first.url)
            await log_in(here, ada)
            await here.goto("/links/")
            await expect(here.locator("#linksEmpty")).to_be_visible()
            # Browsers share cookies between all ports of a host.
            there = await here.context.new_page()
            # A 503 from the router: the browser does not reconnect by itself after it.
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
            address = f"http://127.0.0.1:{external_site.port}/"
            await form.get_by_label("URL").fill(address)
            await form.get_by_label("Tags").fill("Sea")
            await form.get_by_role("button", name="Save link").click()
            await expect(here.get_by_text("Link saved.")).to_be_visible()
            for page in (here, there):
                await expect(row(page, urlsplit(address).netloc)).to_contain_text(
                    "Fetching the page…"
                )
            await expect(there.locator("#linksEmpty")).to_be_hidden()
            await plain.goto("/links/")
            await expect(row(plain, "Fetching the page…")).to_be_visible()

            await there.locator(".link-title a").focus()
            external_site.can_respond.set()
            for page in (here, there, plain):
                if page is plain:
                    await page.reload()
                link = row(page, "About <i>the</i> sea")
                await expect(link).to_be_visible()
                await expect(link).to_contain_text("It is wide.")
                await expect(link.locator("img")).to_have_js_property("complete", True)
                assert await link.locator("img").evaluate(LOADED)
                await expect(page.get_by_text("Fetching the page…")).to_have_count(0)
            await expect(there.locator(".link-title a")).to_be_focused()
            await expect(there.locator("#links-status")).to_contain_text("updated")

            await row(plain, "sea").get_by_role("button", name="Archive").click()
            for page in (here, there):
                await expect(page.locator(".link")).to_have_count(0)
                await expect(page.locator("#linksEmpty")).to_be_visible()
            await expect(there.get_by_role("main")).to_be_focused()  # the focused row is gone
            await second.stop_cleanly()

        # The second instance is down, and a link changes.
        await here.goto("/links/?state=archived")
        await row(here, "sea").get_by_role("button", name="Unarchive").click()
        await here.goto("/links/")
        await expect(row(here, "sea")).to_be_visible()
        await expect(row(there, "sea")).to_have_count(0)
        async with web_server(own_database_url, second.port) as second:
            await expect(row(there, "sea")).to_be_visible()
            await form.get_by_label("URL").fill(f"{address}next")
            await form.get_by_role("button", name="Save link").click()
            newest = there.locator(".link-title a").first
            await expect(newest).to_have_attribute("href", f"{address}next")
            await expect(there.locator(".link")).to_have_count(2)
            assert await there.evaluate("window.neverReloaded")
            await there.close()
            await second.stop_cleanly()
        await here.close()
        worker.send()
        assert await worker.wait_for_exit(15) == 0, worker.output
        await first.stop_cleanly()
    # Reconnection attempts failed while the instance was down.
    watch.complaints[:] = [each for each in watch.complaints if "/links/events/" not in each]
