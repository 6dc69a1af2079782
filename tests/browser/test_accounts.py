"""Registration, login and logout as people do them: with a mouse, with a keyboard alone."""

import pytest
from playwright.async_api import Page, expect

from tests.browser.browsing import NewPage, Site, log_in, press_tab, register, tab_to
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")


async def test_the_whole_journey(page: Page) -> None:
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
    await form.get_by_label("User name").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    await expect(page.get_by_role("status")).to_contain_text("You are logged in.")
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Welcome, {ada.username}")
    # The list of members holds confirmed addresses only.
    await expect(page.get_by_role("cell", name=ada.username, exact=True)).to_have_count(0)

    # The home page was looked at, and may have been kept, before the login.
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
    await form.get_by_label("User name").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Welcome, {ada.username}")


async def test_no_page_from_before_the_login_is_shown_after_it(page: Page, site: Site) -> None:
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


async def test_going_back_after_login_shows_the_page_of_the_user(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await page.goto("/about/")
    await page.goto("/")
    form = page.locator("form#loginForm")
    await form.get_by_label("User name").fill(ada.username)
    await form.get_by_label("Password").fill(ada.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    for path in ("/", "/about/"):
        await page.go_back(wait_until="commit")
        await expect(page).to_have_url(path)
        await expect(page.get_by_text(f"Logged in as {ada.username}")).to_be_visible()
        await expect(page.locator("form#loginForm")).to_have_count(0)


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
async def test_going_back_after_logout_shows_nothing_of_the_user(
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


async def test_what_is_wrong_stands_beside_its_field(page: Page) -> None:
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    await form.get_by_label("User name").fill("x")
    await form.get_by_label("Email").fill("nowhere")
    await form.get_by_label("Password", exact=True).fill("correct horse")
    await form.get_by_label("Repeat the password").fill("battery staple")
    await form.get_by_role("button", name="Register").click()
    await expect(page).to_have_title("Error: Register · quart-upsun")
    here = page.get_by_role("navigation").get_by_role("link", name="Register")
    await expect(here).to_have_attribute("aria-current", "page")

    for name, message, value in (
        ("User name", "Between 3 and 25 characters.", "x"),
        ("Email", "This is not a valid email address.", "nowhere"),
        ("Repeat the password", "The passwords do not match.", ""),
    ):
        field = form.get_by_label(name)
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description(message)
        await expect(field).to_have_value(value)
        told = form.get_by_text(message)
        await expect(told).to_be_visible()
        field_box, message_box = await field.bounding_box(), await told.bounding_box()
        assert field_box is not None
        assert message_box is not None
        gap = message_box["y"] - field_box["y"] - field_box["height"]
        assert 0 <= gap < 16, "the message does not stand below its field"
    password = form.get_by_label("Password", exact=True)
    await expect(password).to_have_value("")
    await expect(password).not_to_have_attribute("aria-invalid", "true")
    await expect(form.get_by_label("User name")).to_be_focused()


async def test_the_focus_goes_to_the_first_field_that_needs_it(page: Page) -> None:
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    for name, value in (Person().registration | {"email": "nowhere"}).items():
        await form.locator(f"[name={name}]").fill(value)
    await form.get_by_role("button", name="Register").click()
    await expect(form.get_by_label("Email")).to_be_focused()


async def test_a_taken_user_name_is_told(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await page.goto("/register/")
    form = page.locator("form#registerForm")
    second = Person(username=ada.username.upper(), email=f"other-{ada.email}")
    for name, value in second.registration.items():
        await form.locator(f"[name={name}]").fill(value)
    await form.get_by_role("button", name="Register").click()
    field = form.get_by_label("User name")
    await expect(field).to_have_accessible_description("This user name is taken.")
    await expect(field).to_be_focused()
    await expect(form.get_by_label("Email")).to_have_value(second.email)


async def test_a_wrong_password_is_told(page: Page, site: Site) -> None:
    ada = Person()
    await register(site, ada)
    await page.goto("/about/")
    form = page.locator("nav form#loginForm")
    await form.get_by_label("User name").fill(ada.username)
    await form.get_by_label("Password").fill("not this one")
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/login/")
    message = "The user name or the password is wrong."
    await expect(page.get_by_role("alert")).to_have_text(message)
    form = page.get_by_role("main").locator("form#loginForm")
    await expect(form.get_by_label("User name")).to_have_value(ada.username)
    await expect(form.get_by_label("Password")).to_have_value("")


async def test_registration_and_login_with_the_keyboard_alone(page: Page) -> None:
    ada = Person()
    await page.goto("/")
    await tab_to(page, "Register")
    await page.keyboard.press("Enter")
    await page.wait_for_url("/register/")
    await tab_to(page, "Log in")  # the button of the bar: the form of the page comes next
    for value in ada.registration.values():
        await press_tab(page)
        await page.keyboard.type(value)
    assert await press_tab(page) == "Register"
    await page.keyboard.press("Space")
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("Thank you for registering.")

    await tab_to(page, "User name")
    await page.keyboard.type(ada.username)
    assert await press_tab(page) == "Password"
    await page.keyboard.type(ada.password)
    await page.keyboard.press("Enter")
    await page.wait_for_url("/users/")

    await tab_to(page, "Close this message")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_have_count(0)
    await expect(page.get_by_role("main")).to_be_focused()

    await page.goto("/users/")
    await tab_to(page, "Log out")
    await page.keyboard.press("Enter")
    await page.wait_for_url("/")
    await expect(page.get_by_role("status")).to_contain_text("You are logged out.")
