"""Helpers of the browser tests: error watching, keyboard navigation, accounts."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from playwright.async_api import (
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    ViewportSize,
    WebError,
)

from quart_upsun.database import Database
from quart_upsun.testing.servers import Server
from quart_upsun.testing.smtp import MailServer
from tests.features.factories import Person

NewPage = Callable[..., Awaitable[Page]]
"""Opens a page in a context of its own; takes the options of Playwright's `new_context`."""

ORIGIN = "https://www.example.com"  # the configured PUBLIC_ORIGIN; tests use only the path of links

NARROW = ViewportSize(width=375, height=667)
WIDE = ViewportSize(width=1280, height=800)

MAX_TABS = 30  # more than the focusable elements of any page

# Whether the focused element has a visible focus indicator.
VISIBLE_FOCUS = """element => {
  const style = getComputedStyle(element);
  const outline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  return outline || style.boxShadow !== "none";
}"""

# The accessible name of an element: its `aria-label`, label or text.
NAME = """element => (
  element.getAttribute("aria-label") || element.labels?.[0]?.textContent || element.textContent
).trim()"""


class Watch:
    """Records errors in a browser that are not visible on the page.

    Attributes:
        complaints: the recorded errors.
        expected: error statuses that the test expects, and that are not recorded.
    """

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.expected: set[int] = set()

    def listen(self, context: BrowserContext) -> None:
        context.on("console", self._console)
        context.on("weberror", self._exception)
        context.on("requestfailed", self._failure)
        context.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        # Includes violations of the content security policy. Resources that failed to load are
        # recorded by `_failure` and `_response`, with their URL.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.complaints.append(f"console: {message.text}")

    def _exception(self, error: WebError) -> None:
        self.complaints.append(f"exception: {error.error}")

    def _failure(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # navigation canceled the request
            self.complaints.append(f"request failed: {request.url}: {request.failure}")

    def _response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.complaints.append(f"status {response.status}: {response.url}")


@dataclass(frozen=True)
class Site:
    """The server under test, its database and its mail server."""

    server: Server
    database: Database
    mailbox: MailServer

    @property
    def url(self) -> str:
        return self.server.url

    async def link(self, person: Person, subject: str) -> str:
        """Wait for an email to a person, and return the path of its link."""
        message = await self.mailbox.wait_for_mail(person.email, subject)
        body = message.get_body(("plain",))
        assert body is not None
        found = re.search(rf"{ORIGIN}(/\S*)", body.get_content())
        assert found is not None, body.get_content()
        return found[1]


Visit = Callable[[Page, Site], Awaitable[None]]
"""Opens a page, after setting up what the page needs."""


async def register(site: Site, *people: Person, **options: bool) -> None:
    """Create accounts without a browser. The options are those of `Person.create`."""
    for person in people:
        await person.create(site.database, **options)


async def log_in(page: Page, person: Person) -> None:
    """Log in with the form of the login page."""
    await page.goto("/login/")
    form = page.locator("main form#loginForm")
    await form.get_by_label("Username").fill(person.username)
    await form.get_by_label("Password").fill(person.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("**/users/")


async def press_tab(page: Page) -> str:
    """Press Tab, and return the accessible name of the focused element.

    Fails if the focus is not visible.
    """
    await page.keyboard.press("Tab")
    focused = page.locator(":focus")
    name: str = await focused.evaluate(NAME)
    assert await focused.evaluate(VISIBLE_FOCUS), f"{name!r} has no visible focus indicator"
    return name


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with this name is focused."""
    passed = []
    for _ in range(MAX_TABS):
        passed.append(await press_tab(page))
        if passed[-1] == name:
            return
    raise AssertionError(f"Tab does not reach {name!r}, only {passed}")
