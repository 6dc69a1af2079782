"""What the journeys have in common: somebody who listens, hands on a keyboard, an account."""

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

ORIGIN = "https://www.example.com"  # what the server is told; only the path leads to it

NARROW = ViewportSize(width=375, height=667)
WIDE = ViewportSize(width=1280, height=800)

MAX_TABS = 30  # more than any page has

# What a sighted user of the keyboard needs: the element with the focus looks different.
VISIBLE_FOCUS = """element => {
  const style = getComputedStyle(element);
  const outline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  return outline || style.boxShadow !== "none";
}"""

# What the element is called, for everybody: by its label, its `aria-label` or its text.
NAME = """element => (
  element.getAttribute("aria-label") || element.labels?.[0]?.textContent || element.textContent
).trim()"""


class Watch:
    """Hears what goes wrong in a browser without anybody seeing it.

    Attributes:
        complaints: what was heard.
        expected: statuses from 400 on that belong to the test.
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
        # Violations of the content security policy are errors here. Resources that failed to load
        # are too, but those are heard as requests, with their address.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.complaints.append(f"console: {message.text}")

    def _exception(self, error: WebError) -> None:
        self.complaints.append(f"exception: {error.error}")

    def _failure(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left before all of it had arrived
            self.complaints.append(f"request failed: {request.url}: {request.failure}")

    def _response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.complaints.append(f"status {response.status}: {response.url}")


@dataclass(frozen=True)
class Site:
    """The server that the browser visits, and what lies behind it."""

    server: Server
    database: Database
    mailbox: MailServer

    @property
    def url(self) -> str:
        return self.server.url

    async def link(self, person: Person, subject: str) -> str:
        """Wait for a mail to somebody, and return the path of the link in it."""
        message = await self.mailbox.mail(person.email, subject)
        body = message.get_body(("plain",))
        assert body is not None
        found = re.search(rf"{ORIGIN}(/\S*)", body.get_content())
        assert found is not None, body.get_content()
        return found[1]


Visit = Callable[[Page, Site], Awaitable[None]]
"""Goes to a page, and does before what it takes to get there."""


async def register(site: Site, *people: Person, **options: bool) -> None:
    """Create accounts without a browser; see `Person.create`."""
    for person in people:
        await person.create(site.database, **options)


async def log_in(page: Page, person: Person) -> None:
    """Log in with the form of the login page."""
    await page.goto("/login/")
    form = page.locator("main form#loginForm")
    await form.get_by_label("User name").fill(person.username)
    await form.get_by_label("Password").fill(person.password)
    await form.get_by_role("button", name="Log in").click()
    await page.wait_for_url("**/users/")


async def press_tab(page: Page) -> str:
    """Press the key, and return the name of the element that has the focus now.

    The element must look different with the focus.
    """
    await page.keyboard.press("Tab")
    focused = page.locator(":focus")
    name: str = await focused.evaluate(NAME)
    assert await focused.evaluate(VISIBLE_FOCUS), f"the focus on {name!r} cannot be seen"
    return name


async def tab_to(page: Page, name: str) -> None:
    """Press the tabulator until the element of this name has the focus."""
    passed = []
    for _ in range(MAX_TABS):
        passed.append(await press_tab(page))
        if passed[-1] == name:
            return
    raise AssertionError(f"the keyboard does not lead to {name!r}, but to {passed}")
