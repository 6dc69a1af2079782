"""Rules for every page: structure, contrast, width, and assets."""

from base64 import b64encode
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from playwright.async_api import Page, ViewportSize, expect

from quart_upsun.testing.servers import serving
from tests.browser.browsing import (
    NARROW,
    WIDE,
    NewPage,
    Site,
    Visit,
    Watch,
    log_in,
    press_tab,
    register,
    tab_to,
)
from tests.features.factories import SITE_NAME, Person

pytestmark = pytest.mark.xdist_group("browser")

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
# Minimum contrast of text (WCAG 1.4.3, level AA) and of field borders (1.4.11).
MIN_CONTRAST = {"text": 4.5, "edge": 3.0}
NO_TEXT = """*, ::placeholder {
  -webkit-text-fill-color: transparent !important;
  text-decoration-color: transparent !important;
}
::-webkit-calendar-picker-indicator { visibility: hidden; }"""
# The content security policy allows constructed style sheets, but no inline styles.
ADD_STYLE = """css => {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(css);
  document.adoptedStyleSheets.push(sheet);
}"""
# The minimum of WCAG 1.4.10, a phone, and the breakpoints of the layout.
WIDTHS = (320, 375, 576, 768, 992)
BODY_BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def at(path: str) -> Visit:
    async def visit(page: Page, site: Site) -> None:
        await page.goto(path)

    return visit


async def refused_registration(page: Page, site: Site) -> None:
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    await form.get_by_label("Username").fill("x" * 25 + "!")
    await form.get_by_label("Email").fill("nowhere")
    await form.get_by_role("button", name="Register").click()
    await expect(form.get_by_text("Enter a valid email address.")).to_be_visible()


async def refused_login(page: Page, site: Site) -> None:
    await page.goto("/login/")
    form = page.locator("main form#loginForm")
    await form.get_by_label("Username").fill("nobody")
    await form.get_by_label("Password").fill("nothing at all")
    await form.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("alert")).to_be_visible()


async def members(page: Page, site: Site) -> None:
    """The page of a user with a long name, with the message of the login."""
    person = Person()
    person.username = f"{person.username}-{'W' * 25}"[:25]  # the widest possible name
    await register(site, person)
    await log_in(page, person)


async def account(page: Page, site: Site) -> None:
    """The account page with an invalid form, events, and an unconfirmed email address."""
    person = Person()
    await register(site, person, confirmed=False)
    await log_in(page, person)
    await page.goto("/account/")
    await page.locator("#emailForm").get_by_role("button", name="Change email").click()
    await expect(page.get_by_text("Enter your email address.")).to_be_visible()


async def reset(page: Page, site: Site) -> None:
    person = Person()
    await register(site, person)
    await page.goto("/forgot/")
    await page.locator("#forgotForm").get_by_label("Email").fill(person.email)
    await page.get_by_role("button", name="Send reset link").click()
    await page.goto(await site.link(person, "Reset your password"))
    await page.get_by_role("button", name="Reset password").click()
    await expect(page.get_by_text("Enter a password.")).to_be_visible()


async def home_of_a_member(page: Page, site: Site) -> None:
    await members(page, site)
    await page.goto("/")


# One page of each kind.
PAGES: dict[str, Visit] = {
    "home": at("/"),
    "about": at("/about/"),
    "register": at("/register/"),
    "refused registration": refused_registration,
    "login": at("/login/"),
    "refused login": refused_login,
    "members": members,
    "home of a member": home_of_a_member,
    "not found": at("/nowhere/"),
    "account": account,
    "new password": reset,
    # Pages of features, from modules named `pages_<feature>.py`.
    **{
        name: visit
        for module in sorted(Path(__file__).parent.glob("pages_*.py"))
        for name, visit in import_module(f"tests.browser.{module.stem}").PAGES.items()
    },
}


@pytest.mark.parametrize("visit", PAGES.values(), ids=PAGES.keys())
async def test_structure_contrast_and_width(
    new_page: NewPage, site: Site, watch: Watch, visit: Visit
) -> None:
    watch.expected |= {403, 404}
    page = await new_page()
    await visit(page, site)
    await assert_valid_structure(page)
    for screen in (WIDE, NARROW):
        await page.set_viewport_size(screen)
        await page.emulate_media(color_scheme="light")
        assert await low_contrast(page) == []
        await page.emulate_media(color_scheme="dark")
        assert await low_contrast(page) == []
    await assert_fits_the_screen(page)
    # Without JavaScript, the menu is always open.
    page = await new_page(java_script_enabled=False)
    await visit(page, site)
    await assert_fits_the_screen(page)


async def assert_valid_structure(page: Page) -> None:
    await expect(page.locator("html")).to_have_attribute("lang", "en")
    await expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for landmark in ("banner", "main", "contentinfo"):
        await expect(page.get_by_role(landmark)).to_have_count(1)
    await expect(page.get_by_role("navigation", name="Main")).to_have_count(1)
    levels = await page.locator("h1, h2, h3, h4, h5, h6").evaluate_all(
        "headings => headings.map(heading => Number(heading.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    nameless = await page.locator(
        "input:not([type=hidden]), button, a, img:not([alt])"
    ).evaluate_all(
        """elements => elements
            .filter(element => !(element.labels?.length || element.ariaLabel
                || (!element.matches("input, img") && element.textContent.trim())))
            .map(element => element.outerHTML)"""
    )
    assert nameless == []


async def assert_fits_the_screen(page: Page) -> None:
    for width in WIDTHS:
        await page.set_viewport_size({"width": width, "height": 667})
        assert await page.evaluate("document.scrollingElement.scrollWidth") <= width


async def low_contrast(page: Page) -> list[dict[str, Any]]:
    """Return the texts and field borders whose contrast is too low."""
    # The options of `screenshot` would add an inline style, which the page's policy forbids.
    await page.evaluate("document.activeElement.blur()")  # the focus ring is not a background
    await page.evaluate(ADD_STYLE, NO_TEXT)
    png = await page.screenshot(full_page=True, caret="initial")
    await page.evaluate("document.adoptedStyleSheets.pop()")
    measured: list[dict[str, Any]] = await page.evaluate(
        CONTRAST, f"data:image/png;base64,{b64encode(png).decode()}"
    )
    assert len(measured) > 5
    return [each for each in measured if each["ratio"] < MIN_CONTRAST[each["kind"]]]


async def test_low_contrast_is_detected(page: Page) -> None:
    await page.goto("/login/")
    await page.evaluate(
        ADD_STYLE,
        "main { background: linear-gradient(#fff, #ddd) } main a[href^='/'] { color: #767676 }"
        " [name=username] { --field-border-color: #ccc }",
    )
    found = {each["what"] for each in await low_contrast(page)}
    assert found == {"Register", "Forgot your password?", "edge of username"}


async def test_color_scheme_follows_the_system(new_page: NewPage) -> None:
    light, dark = await new_page(color_scheme="light"), await new_page(color_scheme="dark")
    for page in (light, dark):
        await page.goto("/")
    assert await light.evaluate(BODY_BACKGROUND) == "rgb(255, 255, 255)"
    assert await dark.evaluate(BODY_BACKGROUND) == "rgb(13, 24, 33)"
    await light.emulate_media(color_scheme="dark")
    assert await light.evaluate(BODY_BACKGROUND) == "rgb(13, 24, 33)"


@pytest.mark.parametrize("with_keyboard", [False, True])
async def test_menu_opens_and_closes(new_page: NewPage, site: Site, with_keyboard: bool) -> None:
    ada = Person()
    await register(site, ada)
    page = await new_page(viewport=NARROW)
    await page.goto("/")
    toggler = page.get_by_role("button", name="Menu")
    await expect(toggler).to_have_attribute("aria-expanded", "false")
    form = page.locator("nav form#loginForm")
    await expect(form).to_be_hidden()
    if with_keyboard:
        await tab_to(page, "Menu")
        await page.keyboard.press("Enter")
    else:
        await toggler.click()
    await expect(toggler).to_have_attribute("aria-expanded", "true")
    await expect(form).to_be_visible()
    await expect(page.get_by_role("link", name="Register", exact=True)).to_be_visible()
    width = await page.evaluate("document.scrollingElement.scrollWidth")
    assert width <= NARROW["width"]

    await form.get_by_label("Username").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    toggler = page.get_by_role("button", name="Menu")
    await toggler.click()
    await expect(page.get_by_role("button", name="Log out")).to_be_visible()
    await toggler.click()
    await expect(page.get_by_role("button", name="Log out")).to_be_hidden()


@pytest.mark.parametrize("screen", [NARROW, WIDE], ids=["narrow", "wide"])
async def test_register_and_log_in_without_javascript(
    new_page: NewPage, screen: ViewportSize
) -> None:
    page = await new_page(java_script_enabled=False, viewport=screen)
    ada = Person()
    await page.goto("/")
    await page.get_by_role("navigation").get_by_role("link", name="Register").click()
    form = page.locator("form#registerForm")
    for name, value in (ada.registration | {"confirm": "something else"}).items():
        await form.locator(f"[name={name}]").fill(value)
    await form.get_by_role("button", name="Register").click()
    await expect(form.get_by_text("Passwords do not match.")).to_be_visible()
    await form.locator("[name=password]").fill(ada.password)
    await form.locator("[name=confirm]").fill(ada.password)
    await form.get_by_role("button", name="Register").click()
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("Thank you for registering.")
    # Controls that need JavaScript are hidden.
    await expect(page.get_by_role("button", name="Close message")).to_be_hidden()
    await expect(page.get_by_role("button", name="Menu")).to_be_hidden()

    form = page.locator("nav form#loginForm")
    await form.get_by_label("Username").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    await page.get_by_role("button", name="Log out").click()
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("You are logged out.")


async def test_tab_order_follows_the_page(page: Page) -> None:
    await page.goto("/")
    assert [await press_tab(page) for _ in range(9)] == [
        "Skip to main content",
        SITE_NAME,
        "Home",
        "About",
        "Register",
        "Username",
        "Password",
        "Log in",
        "Create an account",
    ]


async def test_skip_link_skips_the_navigation(page: Page) -> None:
    await page.goto("/")
    link = page.get_by_role("link", name="Skip to main content")
    box = await link.bounding_box()
    assert box is not None
    assert box["width"] <= 1, "the skip link is visible without focus"
    assert await press_tab(page) == "Skip to main content"
    box = await link.bounding_box()
    assert box is not None
    assert box["width"] > 50
    await page.keyboard.press("Enter")
    assert await press_tab(page) == "Create an account"


async def test_not_found_page(page: Page, watch: Watch) -> None:
    watch.expected.add(404)
    await page.goto("/nowhere/")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Not Found")
    await expect(page.locator("nav form#loginForm")).to_be_visible()
    await page.get_by_role("link", name="Go to the home page").click()
    await page.wait_for_url("/")


async def test_forms_show_503_without_the_schema(
    new_page: NewPage, watch: Watch, empty_database: str
) -> None:
    watch.expected.add(503)
    async with serving(1, "app.server", DATABASE_URL=empty_database) as server:
        page = await new_page(base_url=server.url)
        ada = Person()
        for path, button in (("/login/", "Log in"), ("/register/", "Register")):
            await page.goto(path)
            for name, value in ada.registration.items():
                for field in await page.locator(f"main form [name={name}]").all():
                    await field.fill(value)
            async with page.expect_response(f"**{path}") as refused:
                await page.get_by_role("main").get_by_role("button", name=button).click()
            assert (await refused.value).status == 503
            await expect(page.get_by_role("heading", level=1)).to_have_text("Service Unavailable")
            # A login form would fail, too.
            await expect(page.locator("form#loginForm")).to_have_count(0)
        await page.get_by_role("link", name="Go to the home page").click()
        await expect(page.get_by_role("link", name="Create an account")).to_be_visible()
        await server.stop_cleanly()


async def test_assets_are_cached_forever(page: Page, site: Site) -> None:
    await page.goto("/")
    urls: list[str] = await page.locator("head link[href], script[src], img[src]").evaluate_all(
        "elements => elements.map(element => element.getAttribute('href') ?? element.src)"
    )
    asset_urls = {urljoin(site.url, each) for each in urls}
    assert {address.rpartition(".")[2] for address in asset_urls} == {"css", "js", "svg"}
    async with httpx.AsyncClient() as client:
        for address in asset_urls:
            response = await client.get(address)
            assert response.status_code == 200, address
            rules = response.headers["Cache-Control"].split(", ")
            assert {"public", "immutable", "max-age=31536000"} <= set(rules), address
