"""Visits to the pages of the reading list with test data, and a server without a worker."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Locator, Page, expect
from sqlalchemy import func, insert

from app.links import public_lists
from app.links.models import Link
from quart_upsun.testing.servers import Server, serving
from tests.browser.browsing import Site, Visit, log_in, register
from tests.features.factories import Person


def reading_list(path: str) -> Visit:
    """Visit a page with links with long words, highlights, states and errors; `{id}` is a link."""

    async def visit(page: Page, site: Site) -> None:
        ada = Person()
        await register(site, ada)
        async with site.database.write() as session:
            shown = {"user_id": ada.id, "fetched_at": func.now(), "tags": ["sea", "x" * 40]}
            url = f"https://example.com/{'a' * 200}"
            # Not by `queries.save_link`, so that the server does not fetch them.
            sea = {"title": "The sea", "description": "As wide as the sea. " * 20}
            link = await session.scalar(
                insert(Link).values(**shown, **sea, url=url).returning(Link.id)
            )
            error = {"fetch_error": "The TLS certificate is not valid.", "archived": True}
            await session.execute(insert(Link).values(**shown, **error, url=f"{url}/sea"))
            await session.execute(insert(Link).values(url="https://a.example/", user_id=ada.id))
            await public_lists.publish_tag(session, ada.id, "sea")
        await log_in(page, ada)
        await page.goto(path.format(id=link, name=ada.username))

    return visit


async def refused_link(page: Page, site: Site) -> None:
    await reading_list("/links/")(page, site)
    await page.locator("#saveForm").get_by_role("button", name="Save link").click()
    await expect(page.locator("#url-errors")).to_be_visible()


@asynccontextmanager
async def web_server(database_url: str, port: int = 0) -> AsyncIterator[Server]:
    """Run a server that does not run jobs."""
    variables = {
        "DATABASE_URL": database_url,
        "RUN_JOBS": "false",
        "PORT": str(port),
        "PYTHONWARNINGS": "default,ignore::ResourceWarning",  # as the server of the site
    }
    async with serving(1, "app.server", **variables) as server:
        yield server


def row(page: Page, text: str | re.Pattern[str]) -> Locator:
    return page.locator(".link").filter(has_text=text)


PAGES: dict[str, Visit] = {
    "links": reading_list("/links/?state=all"),
    "links of a public tag": reading_list("/links/?tag=sea"),
    "links that were found": reading_list("/links/?q=sea"),
    "refused link": refused_link,
    "link": reading_list("/links/{id}/"),
    "public list": reading_list("/lists/{name}/sea/"),
}
