"""The `Watch` helper detects errors. Otherwise, its silence would prove nothing."""

import pytest
from playwright.async_api import Page

from quart_upsun.testing.servers import eventually
from tests.browser.browsing import Watch

pytestmark = pytest.mark.xdist_group("browser")


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        ("() => console.error('oh')", "console: oh"),
        ("() => console.warn('oh')", "console: oh"),
        ("() => { setTimeout(() => { throw new Error('oh') }) }", "exception: oh"),
        ("() => { fetch('/nowhere/') }", "status 404"),
        ("() => { fetch('https://example.com/').catch(() => {}) }", "Content Security Policy"),
        ("() => { document.body.setAttribute('style', 'color: red') }", "Content Security Policy"),
    ],
)
async def test_watch_records_errors(page: Page, watch: Watch, mistake: str, complaint: str) -> None:
    await page.goto("/")
    await page.evaluate(mistake)
    await eventually(
        lambda: any(complaint in each for each in watch.complaints),
        f"complaint about {complaint}",
        lambda: str(watch.complaints),
    )
    watch.complaints.clear()
