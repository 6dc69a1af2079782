"""Registration, login and logout with a mouse, and with the keyboard only."""

import pytest
from playwright.async_api import Page, expect

from tests.browser.browsing import NewPage, Site, log_in, press_tab, register, tab_to
from tests.features.factories import SITE_NAME, Person

pytestmark = pytest.mark.xdist_group("browser")


async def test_register_log_in_and_log_out(page: Page) -> None:
    ada = Person()
    await page.goto("/")
    await page.get_by_role("main").get_by_role("link", name="Create an account").click()
    form = page.locator("form#registerForm")
    for name, value in ada.registration.items():
        await form.locator(f"[name={name}]").fill(value)
    await form.get_by_role("button", name="Register").click()
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("Thank you for registering.")

    form = page.get_by_role("navigation").locator("form#loginForm")
    await form.get_by_label("Username").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    await expect(page.get_by_role("status")).to_contain_text("You are logged in.")
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Welcome, {ada.username}")
    # The list contains only users with a confirmed email address.
    await expect(page.get_by_role("cell", name=ada.username, exact=True)).to_have_count(0)

    # The browser may have cached the home page before the login.
    await page.get_by_role("navigation").get_by_role("link", name="Home").click()
    await page.wait_for_url("/")
    await expect(page.get_by_text(f"Logged in as {ada.username}")).to_be_visible()
    await expect(page.locator("form#loginForm")).to_have_count(0)
    await expect(page.get_by_role("status")).to_have_count(0)

    await page.get_by_role("button", name="Log out").click()
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("You are logged out.")
    await expect(page.locator("nav form#loginForm")).to_be_visible()

    await page.goto("/users/")
    assert page.url.endswith("/login/?next=/users/")
    form = page.get_by_role("main").locator("form#loginForm")
    await form.get_by_label("Username").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Welcome, {ada.username}")


async def test_pages_cached_before_login_are_not_shown_after_it(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    links = page.get_by_role("navigation").get_by_role("link")
    for path in ("/", "/about/"):
        await page.goto(path)
    await log_in(page, ada)
    for name, path in (("Home", "/"), ("About", "/about/")):
        await links.filter(has_text=name).click()
        await page.wait_for_url(path)
        await expect(page.get_by_text(f"Logged in as {ada.username}")).to_be_visible()
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_role("status")).to_contain_text("You are logged out.")
    for name, path in (("About", "/about/"), ("Home", "/")):
        await links.filter(has_text=name).click()
        await page.wait_for_url(path)
        await expect(page.locator("nav form#loginForm")).to_be_visible()
        await expect(page.get_by_text(ada.username)).to_have_count(0)


async def test_back_button_after_login_shows_logged_in_page(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await page.goto("/about/")
    await page.goto("/")
    form = page.locator("form#loginForm")
    await form.get_by_label("Username").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    for path in ("/", "/about/"):
        await page.go_back(wait_until="commit")
        await expect(page).to_have_url(path)
        await expect(page.get_by_text(f"Logged in as {ada.username}")).to_be_visible()
        await expect(page.locator("form#loginForm")).to_have_count(0)


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
async def test_back_button_after_logout_shows_no_user_data(
    new_page: NewPage, site: Site, scripts: bool
) -> None:
    page = await new_page(java_script_enabled=scripts)
    ada = Person()
    await register(site, ada)
    await log_in(page, ada)
    await page.goto("/about/")
    await page.get_by_role("button", name="Log out").click()
    await page.wait_for_url("/")
    await page.go_back(wait_until="commit")
    await expect(page).to_have_url("/about/")
    await expect(page.get_by_role("contentinfo")).to_be_visible()
    await expect(page.get_by_text(ada.username)).to_have_count(0)
    await page.go_back(wait_until="commit")
    await expect(page).to_have_url("/login/?next=/users/")
    await expect(page.get_by_text(ada.username)).to_have_count(0)


async def test_validation_errors_are_below_their_fields(page: Page) -> None:
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    await form.get_by_label("Username").fill("x")
    await form.get_by_label("Email").fill("nowhere")
    await form.get_by_label("Password", exact=True).fill("correct horse")
    await form.get_by_label("Confirm password").fill("battery staple")
    await form.get_by_role("button", name="Register").click()
    await expect(page).to_have_title(f"Error: Register · {SITE_NAME}")
    here = page.get_by_role("navigation").get_by_role("link", name="Register")
    await expect(here).to_have_attribute("aria-current", "page")

    for name, message, value in (
        ("Username", "Use 3 to 25 characters.", "x"),
        ("Email", "Enter a valid email address.", "nowhere"),
        ("Confirm password", "Passwords do not match.", ""),
    ):
        field = form.get_by_label(name)
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description(message)
        await expect(field).to_have_value(value)
        error = form.get_by_text(message)
        await expect(error).to_be_visible()
        field_box, message_box = await field.bounding_box(), await error.bounding_box()
        assert field_box is not None
        assert message_box is not None
        gap = message_box["y"] - field_box["y"] - field_box["height"]
        assert 0 <= gap < 16, "the error is not directly below its field"
    password = form.get_by_label("Password", exact=True)
    await expect(password).to_have_value("")
    await expect(password).not_to_have_attribute("aria-invalid", "true")
    await expect(form.get_by_label("Username")).to_be_focused()


async def test_first_invalid_field_is_focused(page: Page) -> None:
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    for name, value in (Person().registration | {"email": "nowhere"}).items():
        await form.locator(f"[name={name}]").fill(value)
    await form.get_by_role("button", name="Register").click()
    await expect(form.get_by_label("Email")).to_be_focused()


async def test_register_rejects_taken_username(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    second = Person(username=ada.username.upper(), email=f"other-{ada.email}")
    for name, value in second.registration.items():
        await form.locator(f"[name={name}]").fill(value)
    await form.get_by_role("button", name="Register").click()
    field = form.get_by_label("Username")
    await expect(field).to_have_accessible_description("This username is already taken.")
    await expect(field).to_be_focused()
    await expect(form.get_by_label("Email")).to_have_value(second.email)


async def test_login_rejects_wrong_password(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await page.goto("/about/")
    form = page.locator("nav form#loginForm")
    await form.get_by_label("Username").fill(ada.username)
    await form.get_by_label("Password").fill("not this one")
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/login/")
    message = "Incorrect username or password."
    await expect(page.get_by_role("alert")).to_have_text(message)
    form = page.get_by_role("main").locator("form#loginForm")
    await expect(form.get_by_label("Username")).to_have_value(ada.username)
    await expect(form.get_by_label("Password")).to_have_value("")


async def test_register_and_log_in_with_keyboard_only(page: Page) -> None:
    ada = Person()
    await page.goto("/")
    await tab_to(page, "Register")
    await page.keyboard.press("Enter")
    await page.wait_for_url("/register/")
    await tab_to(page, "Log in")  # the button of the navigation bar; the form of the page follows
    for name, value in zip(
        ("Username", "Email", "Password", "Confirm password"),
        ada.registration.values(),
        strict=True,
    ):
        await tab_to(page, name)
        await page.keyboard.type(value)
    await tab_to(page, "Register")
    await page.keyboard.press("Space")
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("Thank you for registering.")

    await tab_to(page, "Username")
    await page.keyboard.type(ada.username)
    assert await press_tab(page) == "Password"
    await page.keyboard.type(ada.password)
    await page.keyboard.press("Enter")
    await page.wait_for_url("/users/")

    await tab_to(page, "Close message")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_have_count(0)
    await expect(page.get_by_role("main")).to_be_focused()

    await page.goto("/users/")
    await tab_to(page, "Log out")
    await page.keyboard.press("Enter")
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("You are logged out.")
