"""What features add to parts of the site that belong to no feature, or to another one.

Each feature's `init_app` registers its own, so that a feature can be deleted without a trace.
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
    """Who sees it; visitors are those who are not logged in."""
    position: int = 50
    """The menu is sorted by it."""


@dataclass(frozen=True)
class PersonalDataSection:
    """A list of a user's rows in "Download your data"."""

    name: str
    """The member of the JSON object."""
    rows: Callable[[Database, int], AsyncIterator[Sequence[dict[str, Any]]]]
    """Yields the rows of a user by the page, and holds no connection meanwhile."""
    tables: tuple[str, ...]
    """The tables that it covers."""
    is_account_in_use: bool = True
    """Whether an account with such rows is in use, though it was never confirmed."""


class RevokeAccess(Protocol):
    """Ends what lets programs act for a user, such as access tokens."""

    async def __call__(
        self, session: AsyncSession, user_id: int, *, actor_id: int | None = None
    ) -> None: ...


@dataclass
class Site:
    """The additions of all features."""

    menu: list[MenuEntry] = field(default_factory=list)
    """The navigation bar."""
    start_page: MenuEntry | None = None
    """Where the home page leads a user who is logged in."""
    admin_menu: list[MenuEntry] = field(default_factory=list)
    """The administrators' pages."""
    account_cards: list[str] = field(default_factory=list)
    """Templates that the account page includes."""
    personal_data: list[PersonalDataSection] = field(default_factory=list)
    tables_not_exported: dict[str, str] = field(default_factory=dict)
    """Tables with rows of users that are not downloaded, and why."""
    in_use_conditions: list[Callable[[], ColumnElement[bool]]] = field(default_factory=list)
    """Conditions on `users`: an account for which one is true is in use."""
    revoke_callbacks: list[RevokeAccess] = field(default_factory=list)
    """Called in the transaction that signs a user out everywhere, or deactivates them."""

    def menu_for(self, user: "User | None") -> list[MenuEntry]:
        """Return the entries of the navigation bar for a user; None for a visitor."""
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
        """Revoke what lets programs act for a user.

        Args:
            session: of `write()`.
            user_id: whose.
            actor_id: who does it, if it is another user.
        """
        for revoke in self.revoke_callbacks:
            await revoke(session, user_id, actor_id=actor_id)


def init_app(app: Quart) -> None:
    """Begin with a site without any feature."""
    app.extensions["site"] = site = Site()
    app.jinja_env.globals["site"] = site


def get_site(app: Quart) -> Site:
    """Return the site of an application, for the `init_app` of a feature."""
    site: Site = app.extensions["site"]
    return site
