"""Controls that scripts or popovers add: relative times, "Show password", confirmation dialogs."""

from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Locator, Page, expect
from sqlalchemy import update

from app.user.models import User
from tests.browser.browsing import NewPage, Site, log_in, register, tab_to
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")

ADD_TIME = """created => {
  const time = document.createElement("time");
  time.dateTime = created;
  time.title = "the exact time";
  time.dataset.relative = "";
  document.querySelector("main").append(time);
}"""


async def join(site: Site, ago: timedelta) -> tuple[Person, datetime]:
    """Create a user who joined some time ago, and return the user and the time."""
    person = Person()
    await register(site, person)
    created = datetime.now(UTC) - ago
    async with site.database.write() as session:
        await session.execute(update(User).where(User.id == person.id).values(created_at=created))
    return person, created


def time_of(page: Page, person: Person) -> Locator:
    return page.get_by_role("row").filter(has_text=person.username).locator("time")


async def test_times_are_relative_with_utc_tooltip(page: Page, site: Site) -> None:
    recent, created = await join(site, timedelta(minutes=5, seconds=10))
    old, joined = await join(site, timedelta(days=400))
    await log_in(page, recent)
    time = time_of(page, recent)
    await expect(time).to_have_text("5 minutes ago")
    await expect(time).to_have_attribute("title", f"{created:%d %b %Y %H:%M:%S} UTC")
    await expect(time).to_have_attribute("datetime", f"{created:%Y-%m-%dT%H:%M:%SZ}")
    # The date is more useful than "400 days ago".
    await expect(time_of(page, old)).to_have_text(f"{joined:%d %b %Y}")


async def test_times_are_absolute_without_javascript(new_page: NewPage, site: Site) -> None:
    person, created = await join(site, timedelta(minutes=5))
    page = await new_page(java_script_enabled=False)
    await log_in(page, person)
    await expect(time_of(page, person)).to_have_text(f"{created:%d %b %Y %H:%M} UTC")


async def test_times_stay_up_to_date_and_include_inserted_content(page: Page, site: Site) -> None:
    now = datetime.now(UTC)
    await page.clock.install(time=now)
    await page.goto("/about/")
    await page.evaluate(ADD_TIME, f"{now - timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}")
    time = page.locator("main time")
    await expect(time).to_have_text("2 minutes ago")
    await page.clock.fast_forward(3_600_000)
    await expect(time).to_have_text("1 hour ago")


async def test_show_password_button(page: Page) -> None:
    await page.goto("/login/")
    field = page.get_by_role("main").get_by_label("Password")
    button = page.get_by_role("main").get_by_role("button", name="Show password")
    await field.fill("correct horse battery")
    await expect(button).to_have_attribute("aria-pressed", "false")
    await tab_to(page, "Show password")
    await page.keyboard.press("Enter")
    await expect(field).to_have_attribute("type", "text")
    await expect(button).to_have_attribute("aria-pressed", "true")
    await expect(field).to_have_value("correct horse battery")
    await button.click()
    await expect(field).to_have_attribute("type", "password")
    await expect(button).to_have_attribute("aria-pressed", "false")


async def test_shown_password_is_submitted_as_password_field(page: Page, site: Site) -> None:
    """Password managers save only fields of this type."""
    person = Person()
    await register(site, person)
    await page.goto("/login/")
    form = page.locator("main form#loginForm")
    await form.get_by_label("Username").fill(person.username)
    await form.get_by_label("Password").fill(person.password)
    await form.get_by_role("button", name="Show password").click()
    await form.evaluate(
        "form => form.addEventListener('submit', () => { sessionStorage.type ="
        " form.elements.password.type })"
    )
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("/users/")
    assert await page.evaluate("sessionStorage.type") == "password"


async def test_no_show_password_button_without_javascript(new_page: NewPage) -> None:
    page = await new_page(java_script_enabled=False)
    await page.goto("/login/")
    await expect(page.get_by_role("button", name="Show password")).to_have_count(0)


@pytest.mark.parametrize("scripts", [True, False], ids=["javascript", "no-javascript"])
async def test_confirmation_dialog(new_page: NewPage, site: Site, scripts: bool) -> None:
    person = Person()
    await register(site, person)
    page = await new_page(java_script_enabled=scripts)
    await log_in(page, person)
    await page.goto("/account/")
    opener = page.locator("#signOutForm > button")
    dialog = page.get_by_role("dialog", name="Log out everywhere?")
    await expect(dialog).to_be_hidden()

    # Opening the dialog does not submit the form, and the safe button has the focus.
    await opener.focus()
    await page.keyboard.press("Enter")
    await expect(dialog).to_be_visible()
    await expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(dialog).to_be_hidden()
    await expect(opener).to_be_focused()

    await opener.click()
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    assert page.url.endswith("/account/")

    await opener.click()
    await dialog.get_by_role("button", name="Log out everywhere").click()
    await page.wait_for_url("/")
    await page.goto("/account/")
    assert page.url.endswith("/login/?next=/account/")
