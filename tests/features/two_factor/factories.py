"""Authenticator apps for tests."""

from dataclasses import dataclass, field

import pyotp
from bs4 import BeautifulSoup, Tag
from quart import Response
from quart.testing import QuartClient as Client

from tests.features.factories import Person

PAGE = "/account/two-factor/"
CODE_PAGE, RECOVERY_PAGE = "/login/code/", "/login/recovery-code/"


@dataclass
class Clock:
    """Counts time steps of 30 seconds. They advance only when a test says so."""

    step: int = 59_000_000

    def current_step(self) -> int:
        return self.step


@dataclass
class Authenticator:
    """An authenticator app with a secret, and the recovery codes that its owner wrote down."""

    secret: str
    clock: Clock
    recovery_codes: list[str] = field(default_factory=list)

    def code(self, steps: int = 0) -> str:
        """Return the code of the current time step, or of one before or after it."""
        return str(pyotp.HOTP(self.secret).at(self.clock.step + steps))

    def next_code(self) -> str:
        """Wait for the next time step, and return its code."""
        self.clock.step += 1
        return self.code()

    def wrong_code(self) -> str:
        """Return a code that is not valid now."""
        valid = {self.code(steps) for steps in range(-5, 6)}
        return next(code for code in map("{:06}".format, range(20)) if code not in valid)


async def soup_of(response: Response) -> BeautifulSoup:
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


def only(soup: BeautifulSoup, selector: str) -> Tag:
    """Return the one element that matches."""
    (found,) = soup.select(selector)
    return found


async def start(client: Client, clock: Clock) -> Authenticator:
    """Start to turn on two-factor authentication, and scan the secret."""
    response = await client.post(PAGE)
    assert (response.status_code, response.location) == (303, f"{PAGE}setup/")
    soup = await soup_of(await client.get(f"{PAGE}setup/"))
    return Authenticator(only(soup, "#secret").get_text().replace(" ", ""), clock)


async def enrol(client: Client, clock: Clock) -> Authenticator:
    """Turn on two-factor authentication of the user who is logged in with `client`."""
    phone = await start(client, clock)
    response = await client.post(f"{PAGE}setup/", form={"code": phone.code()})
    assert response.status_code == 200
    phone.recovery_codes = codes_on(await soup_of(response))
    clock.step += 1
    return phone


def codes_on(soup: BeautifulSoup) -> list[str]:
    return [each.get_text() for each in soup.select("#codes code")]


async def submit_password(client: Client, person: Person) -> None:
    """Pass the first step of a login, and assert that it leads to the second."""
    response = await client.post("/login/", form=person.login)
    assert (response.status_code, response.location) == (303, CODE_PAGE)


async def log_in_without_code(client: Client, person: Person) -> None:
    """Log in with the password alone, and assert that it is enough."""
    await person.log_in(client)
    assert await is_logged_in(client)


async def is_logged_in(client: Client) -> bool:
    return (await client.get("/account/")).status_code == 200
