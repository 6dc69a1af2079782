"""Update the screenshots of the README: start `make run`, then run this module with `python -m`."""

import asyncio
import os
import shutil

from playwright.async_api import async_playwright

from app.settings import ROOT
from tests.browser.browsing import WIDE

IMAGES = ROOT / "docs" / "images"


async def main() -> None:
    address = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for scheme in ("light", "dark"):
            page = await browser.new_page(base_url=address, viewport=WIDE)
            await page.emulate_media(color_scheme=scheme)
            await page.goto("/")
            await page.screenshot(path=IMAGES / f"home-{scheme}.png")
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
