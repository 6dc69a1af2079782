"""Accounts for tests."""

from dataclasses import dataclass, field
from itertools import count
from typing import cast

from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import delete

from app.settings import Settings
from app.user import accounts, passwords
from app.user.models import Role
from quart_upsun.database import Database
from quart_upsun.jobs.models import Job

_numbers = count(1)

SITE_NAME: str = Settings.model_fields["site_name"].default
LOGIN_COOKIE, SESSION_COOKIE, DEVICE_COOKIE = (
    f"{Settings.name}-{kind}" for kind in ("login", "session", "device")
)


def invalid_fields(page: str) -> list[str]:
    """Return the names of the invalid form fields on a page, in their order."""
    soup = BeautifulSoup(page, "html.parser")
    return [str(field["name"]) for field in soup.select("main [aria-invalid=true]")]


def cookies_of(client: Client) -> dict[str, str]:
    """Return the values of a client's cookies by name."""
    return {cookie.name: cookie.value or "" for cookie in client.cookie_jar or ()}


def new_client(app: Quart) -> Client:
    """Create a test client without cookies."""
    return cast(Client, app.test_client())


@dataclass
class Person:
    """A user and their form input."""

    username: str = field(default_factory=lambda: f"person{next(_numbers)}")
    email: str = ""
    password: str = "correct horse battery"
    id: int = 0
    """The user id, once the account is created."""

    def __post_init__(self) -> None:
        self.email = self.email or f"{self.username}@example.com"

    @property
    def registration(self) -> dict[str, str]:
        """Valid input for the registration form."""
        return {
            "username": self.username,
            "email": self.email,
            "password": self.password,
            "confirm": self.password,
        }

    @property
    def login(self) -> dict[str, str]:
        """Valid input for the login form."""
        return {"username": self.username, "password": self.password}

    async def register(self, app: Quart, **options: bool) -> "Person":
        """Create the account without the registration form. See `create` for the options."""
        return await self.create(app.extensions["quart_upsun"].database, **options)

    async def create(
        self, database: Database, *, confirmed: bool = True, administrator: bool = False
    ) -> "Person":
        """Create the account without the registration form and without sending an email."""
        password_hash = await passwords.hash_password(self.password)
        async with database.write() as session:
            user = await accounts.create_user(
                session, username=self.username, email=self.email, password_hash=password_hash
            )
            if confirmed:
                await accounts.confirm_email(session, user.id, self.email)
            if administrator:
                await accounts.set_role(session, user.id, Role.ADMINISTRATOR)
            await session.execute(delete(Job).where(Job.entrypoint == "mail"))
        self.id = user.id
        return self

    async def log_in(self, client: Client) -> None:
        """Log in with `client`, and assert that it succeeds."""
        response = await client.post("/login/", form=self.login)
        assert response.status_code == 303, await response.get_data(as_text=True)
