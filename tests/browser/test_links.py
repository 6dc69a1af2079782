"""The reading list in a browser: sharing and deletion."""

import pytest
from playwright.async_api import expect
from sqlalchemy import insert

from app.links.models import Link
from tests.browser.browsing import NewPage, Site, log_in, register
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")


async def test_the_public_link_is_copied(new_page: NewPage, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    page = await new_page(permissions=["clipboard-read", "clipboard-write"])
    await log_in(page, ada)
    await page.goto("/links/?tag=sea")
    await page.get_by_role("button", name="Publish").click()
    await page.locator("[data-copy='public-link']").click()
    await expect(page.locator("[data-copy='public-link']")).to_have_text("Copied")
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied == f"{site.url}/lists/{ada.username}/sea/"
    await page.goto(copied)
    await expect(page.get_by_role("heading", level=1)).to_contain_text("sea")


@pytest.mark.parametrize("has_script", [True, False])
async def test_deleting_a_link_needs_a_confirmation(
    new_page: NewPage, site: Site, has_script: bool
) -> None:
    ada = Person()
    await register(site, ada)
    # Not by `queries.save_link`, so that the server does not fetch the page.
    async with site.database.write() as session:
        new = insert(Link).values(user_id=ada.id, url="https://example.com/").returning(Link.id)
        link = await session.scalar(new)
    page = await new_page(java_script_enabled=has_script)
    await log_in(page, ada)
    await page.goto(f"/links/{link}/")
    delete = page.get_by_role("button", name="Delete link")
    await expect(delete).to_be_hidden()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await delete.click()
    await page.wait_for_url("**/links/")
    await expect(page.locator(".link")).to_have_count(0)


async def test_right_to_left_titles_are_read_from_the_right(new_page: NewPage, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    text = "שלום! Python 3.13"
    async with site.database.write() as session:
        await session.execute(
            insert(Link).values(
                user_id=ada.id, url="https://a.example/", title=text, description=text
            )
        )
    page = await new_page()
    await log_in(page, ada)
    await page.goto("/links/")
    for selector in (".link-title", ".link-description"):
        hebrew, latin = [
            await page.locator(selector).evaluate(
                """(element, [start, end]) => {
                    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
                    const range = document.createRange();
                    range.setStart(walker.nextNode(), start);
                    range.setEnd(walker.currentNode, end);
                    return range.getBoundingClientRect().x;
                }""",
                [start, end],
            )
            for start, end in ((0, 4), (6, 12))
        ]
        assert latin < hebrew, selector
