"""Two-factor authentication in a browser: turn it on, log in, use a recovery code, turn it off."""

import os
import time
from base64 import b64encode
from pathlib import Path
from typing import Literal

import pyotp
import pytest
import segno
from playwright.async_api import Page, expect

from tests.browser.browsing import NARROW, WIDE, NewPage, Site, Watch, log_in, register, tab_to
from tests.browser.pages_sessions import ask_for_proof
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")

COLOR_SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

# Scales a screenshot to one pixel for each module of the QR code, and returns which are dark.
READ_MODULES = """async ([picture, size]) => {
  const image = new Image();
  image.src = picture;
  await image.decode();
  const context = new OffscreenCanvas(size, size).getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, size, size);
  const { data } = context.getImageData(0, 0, size, size);
  return Array.from({ length: size * size }, (_, at) => data[4 * at] < 128);
}"""

# Where to save screenshots; none by default.
SCREENSHOTS = os.environ.get("SCREENSHOTS")


def code_at(secret: str, steps: int) -> str:
    """Return the code of a time step relative to now. Neighboring ones are accepted, too."""
    return str(pyotp.HOTP(secret).at(int(time.time()) // 30 + steps))


async def assert_qr_code_is_readable(page: Page) -> None:
    """Check each module of the QR code, and that the quiet zone around it is light."""
    uri = await page.get_by_role("link", name="open it").get_attribute("href")
    assert uri is not None
    rows = list(segno.make(uri, error="m", micro=False).matrix_iter(border=4))
    png = b64encode(await page.locator("svg.qr-code").screenshot(scale="css")).decode()
    dark = await page.evaluate(READ_MODULES, [f"data:image/png;base64,{png}", len(rows)])
    assert dark == [bool(module) for row in rows for module in row]


async def enter_password(page: Page, person: Person) -> None:
    await page.goto("/login/")
    form = page.locator("main form#loginForm")
    await form.get_by_label("Username").fill(person.username)
    await form.get_by_label("Password").fill(person.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("**/login/code/")


async def start(page: Page) -> str:
    """Start to turn it on, and return the setup key."""
    await page.goto("/account/")
    await page.get_by_role("link", name="Two-factor authentication").click()
    await page.get_by_role("button", name="Turn on two-factor authentication").click()
    return (await page.locator("#secret").inner_text()).replace(" ", "")


async def turn_on(page: Page, secret: str) -> list[str]:
    """Enter a first code, and return the recovery codes."""
    await page.get_by_label("Authentication code").fill(code_at(secret, -1))
    await page.get_by_role("button", name="Turn on").click()
    await expect(page.locator("#codes code")).to_have_count(10)
    return await page.locator("#codes code").all_inner_texts()


async def fits(page: Page, name: str) -> None:
    """Check that the page does not scroll sideways, and save a screenshot of each color scheme."""
    for viewport in (WIDE, NARROW):
        await page.set_viewport_size(viewport)
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= viewport["width"], name
        for scheme in COLOR_SCHEMES if SCREENSHOTS else ():
            await page.emulate_media(color_scheme=scheme)
            path = Path(str(SCREENSHOTS)) / f"{name}-{viewport['width']}-{scheme}.png"
            await page.screenshot(path=path, full_page=True)
    await page.set_viewport_size(WIDE)


@pytest.mark.parametrize("has_scripts", [True, False])
async def test_two_factor_journey(
    new_page: NewPage, site: Site, tmp_path: Path, has_scripts: bool
) -> None:
    ada = Person()
    await register(site, ada)
    page = await new_page(java_script_enabled=has_scripts, accept_downloads=True)
    await log_in(page, ada)
    secret = await start(page)
    box = await page.locator("svg.qr-code").bounding_box()
    assert box is not None
    assert box["width"] == box["height"] >= 200
    if has_scripts:
        for scheme in COLOR_SCHEMES:
            await page.emulate_media(color_scheme=scheme)
            await assert_qr_code_is_readable(page)
        await fits(page, "setup")
    codes = await turn_on(page, secret)
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download as text file").click()
    file = await download.value
    assert file.suggested_filename == "recovery-codes.txt"
    await file.save_as(tmp_path / "codes.txt")
    saved = (tmp_path / "codes.txt").read_text()
    assert all(code in saved for code in codes)
    if has_scripts:
        await fits(page, "recovery-codes")
        await page.emulate_media(media="print")
        await expect(page.get_by_role("link", name="Download as text file")).to_be_hidden()
        await expect(page.locator("nav").first).to_be_hidden()
        await expect(page.locator("#codes")).to_be_visible()
        await page.emulate_media(media="screen")

    other = await new_page(java_script_enabled=has_scripts)
    await enter_password(other, ada)
    await other.get_by_label("Authentication code").fill("000 000 0")
    await other.get_by_role("button", name="Log in", exact=True).last.click()
    await expect(other.get_by_text("Enter the six digits")).to_be_visible()
    if has_scripts:
        await fits(other, "login-code")
    await other.get_by_label("Authentication code").fill(code_at(secret, 0))
    await other.get_by_label("Trust this browser").check()
    await other.get_by_role("button", name="Log in", exact=True).last.click()
    await other.wait_for_url("**/users/")
    await other.get_by_role("button", name="Log out").click()
    await other.wait_for_url("/")
    await log_in(other, ada)  # the browser is trusted

    third = await new_page(java_script_enabled=has_scripts)
    await enter_password(third, ada)
    await third.get_by_role("link", name="Use a recovery code").click()
    if has_scripts:
        await fits(third, "login-recovery-code")
    await third.get_by_label("Recovery code").fill(codes[0].lower())
    await third.get_by_role("button", name="Log in", exact=True).last.click()
    await third.wait_for_url("**/users/")

    await page.goto("/account/two-factor/")
    await expect(page.get_by_text("9 of 10 recovery codes are left")).to_be_visible()
    if has_scripts:
        await fits(page, "on")
    await page.get_by_label("Current password").fill(ada.password)
    await page.get_by_label("Authentication code or recovery code").fill(code_at(secret, 1))
    await page.get_by_role("button", name="Turn off two-factor authentication").click()
    await expect(page.get_by_text("Two-factor authentication is off. You were")).to_be_visible()
    if has_scripts:
        await fits(page, "off")
    await log_in(await new_page(), ada)


async def test_code_is_entered_with_the_keyboard(page: Page, new_page: NewPage, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    secret = await start(page)
    await turn_on(page, secret)
    other = await new_page()
    await enter_password(other, ada)
    await tab_to(other, "Authentication code")
    await other.keyboard.type(code_at(secret, 0))
    await tab_to(other, "Trust this browser for 30 days")
    await other.keyboard.press("Space")
    await other.keyboard.press("Enter")
    await other.wait_for_url("**/users/")


async def test_code_confirms_the_identity(page: Page, site: Site, watch: Watch) -> None:
    watch.expected.add(403)
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    secret = await start(page)
    await turn_on(page, secret)
    await ask_for_proof(page, site, ada)
    await page.get_by_label("Authentication code").fill(code_at(secret, 0))
    await page.get_by_role("button", name="Confirm with code").click()
    await expect(page.get_by_text("Waiting for confirmation: new-")).to_be_visible()
