"""Extension points through which features add to shared parts of the site, such as the menu.

The `init_app` of a feature registers its additions. Nothing else mentions the feature, so it can be
removed by deleting its files.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quart import Quart
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.database import Database

if TYPE_CHECKING:
    from app.user.models import User


@dataclass(frozen=True)
class MenuEntry:
    """A link in a menu."""

    label: str
    endpoint: str
    audience: Literal["everybody", "visitors", "users", "administrators"] = "everybody"
    """Who sees the entry. Visitors are users who are not logged in."""
    position: int = 50
    """The sort key in the menu, ascending."""


@dataclass(frozen=True)
class PersonalDataSection:
    """A list of rows in the export behind "Download your data"."""

    name: str
    """The key in the JSON object."""
    rows: Callable[[Database, int], AsyncIterator[Sequence[dict[str, Any]]]]
    """Yields the rows of a user in pages, without holding a connection between them."""
    tables: tuple[str, ...]
    """The tables that the section covers."""
    is_account_in_use: bool = True
    """Whether an unconfirmed account with such rows counts as in use, and is not deleted."""


class RevokeAccess(Protocol):
    """Revokes credentials of programs that act for a user, such as access tokens."""

    async def __call__(
        self, session: AsyncSession, user_id: int, *, actor_id: int | None = None
    ) -> None: ...


@dataclass
class Site:
    """The additions of all features."""

    menu: list[MenuEntry] = field(default_factory=list)
    """Entries of the navigation bar."""
    start_page: MenuEntry | None = None
    """The link on the home page for users who are logged in."""
    admin_menu: list[MenuEntry] = field(default_factory=list)
    """Entries of the administration menu."""
    account_cards: list[str] = field(default_factory=list)
    """Templates included in the account page."""
    personal_data: list[PersonalDataSection] = field(default_factory=list)
    tables_not_exported: dict[str, str] = field(default_factory=dict)
    """Tables with rows of users that are not exported, with the reason."""
    in_use_conditions: list[Callable[[], ColumnElement[bool]]] = field(default_factory=list)
    """SQL conditions on `users`. Unconfirmed accounts that meet one are in use, and not deleted."""
    revoke_callbacks: list[RevokeAccess] = field(default_factory=list)
    """Called in the transaction that ends all sessions of a user or deactivates the user."""

    def menu_for(self, user: "User | None") -> list[MenuEntry]:
        """Return the sorted entries of the navigation bar for a user, or for a visitor if None."""
        audiences = {"everybody", "users" if user else "visitors"}
        if user is not None and user.is_administrator:
            audiences.add("administrators")
        return sorted(
            (entry for entry in self.menu if entry.audience in audiences),
            key=attrgetter("position"),
        )

    async def revoke_access(
        self, session: AsyncSession, user_id: int, *, actor_id: int | None = None
    ) -> None:
        """Revoke all credentials of programs that act for a user, such as access tokens.

        Args:
            session: a session of `write()`.
            user_id: the user whose access is revoked.
            actor_id: the administrator, if one does it.
        """
        for revoke in self.revoke_callbacks:
            await revoke(session, user_id, actor_id=actor_id)


def init_app(app: Quart) -> None:
    """Create an empty `Site`, which features then extend."""
    app.extensions["site"] = site = Site()
    app.jinja_env.globals["site"] = site


def get_site(app: Quart) -> Site:
    """Return the `Site` of an application, for use in the `init_app` of a feature."""
    site: Site = app.extensions["site"]
    return site
