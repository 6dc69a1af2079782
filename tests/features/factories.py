"""Accounts for tests."""

from dataclasses import dataclass, field
from itertools import count
from typing import cast

from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import delete

from app.user import accounts, passwords
from app.user.models import Role
from quart_upsun.database import Database
from quart_upsun.jobs.models import Job

_numbers = count(1)


def new_client(app: Quart) -> Client:
    """A browser without cookies."""
    return cast(Client, app.test_client())


@dataclass
class Person:
    """Somebody with an account, and what they type."""

    username: str = field(default_factory=lambda: f"person{next(_numbers)}")
    email: str = ""
    password: str = "correct horse battery"
    id: int = 0
    """Known once the account is made."""

    def __post_init__(self) -> None:
        self.email = self.email or f"{self.username}@example.com"

    @property
    def registration(self) -> dict[str, str]:
        """The registration form, filled in."""
        return {
            "username": self.username,
            "email": self.email,
            "password": self.password,
            "confirm": self.password,
        }

    @property
    def login(self) -> dict[str, str]:
        """The login form, filled in."""
        return {"username": self.username, "password": self.password}

    async def register(self, app: Quart, **options: bool) -> "Person":
        """Create the account without a form; see `create_user`."""
        return await self.create(app.extensions["quart_upsun"].database, **options)

    async def create(
        self, database: Database, *, confirmed: bool = True, administrator: bool = False
    ) -> "Person":
        """Create the account without a form, and without a mail."""
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
        response = await client.post("/login/", form=self.login)
        assert response.status_code == 303, await response.get_data(as_text=True)
