"""Accounts for tests."""

from dataclasses import dataclass, field
from itertools import count

from quart import Quart
from quart.testing import QuartClient as Client

from app.user import accounts, passwords

_numbers = count(1)


@dataclass
class Person:
    """Somebody with an account, and what they type."""

    username: str = field(default_factory=lambda: f"person{next(_numbers)}")
    email: str = ""
    password: str = "correct horse battery"

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

    async def register(self, app: Quart) -> "Person":
        """Create the account without a form."""
        password_hash = await passwords.hash_password(self.password)
        async with app.extensions["database"].write() as session:
            await accounts.create(
                session, username=self.username, email=self.email, password_hash=password_hash
            )
        return self

    async def log_in(self, client: Client) -> None:
        response = await client.post(
            "/login/", form={"username": self.username, "password": self.password}
        )
        assert response.status_code == 303, await response.get_data(as_text=True)
