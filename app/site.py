"""Extension points through which features add to shared parts of the site, such as the menu.

The `init_app` of a feature registers its additions. Nothing else mentions the feature, so it can be
removed by deleting its files.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quart import Quart
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.datastructures import MultiDict

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


class VerifyPassword(Protocol):
    """Tells whether a password matches the hash of an account, or of none."""

    async def __call__(self, password_hash: str | None, password: str) -> bool: ...


@dataclass(frozen=True)
class ProofMethod:
    """A way for logged-in users to prove their identity once more. See `app.user.proofs`."""

    name: str
    is_available: Callable[[AsyncSession, "User"], Awaitable[bool]]
    """Tells whether a user can use the method."""
    template: str
    """Included in the form of the page. Its fields have names that begin with `proof_`."""
    verify: Callable[["User", MultiDict[str, str]], Awaitable[bool]] | None = None
    """Tells whether the fields of the form are a proof; False without those of the method.

    None for a method with endpoints of its own, which call `record_proof()`.
    """


@dataclass(frozen=True)
class SecondFactor:
    """A second step of a login. See `app.user.pending_login`."""

    name: str
    label: str
    """The text of the link that chooses it instead of another factor."""
    endpoint: str
    """The page that asks for it."""
    is_enabled: Callable[[AsyncSession, int], Awaitable[bool]]
    """Tells whether a user, given by id, has it."""


@dataclass(frozen=True)
class AdminUserAction:
    """A form on the administration page of a user."""

    template: str
    is_available: Callable[[AsyncSession, int], Awaitable[bool]]
    """Tells whether the form is shown for a user, given by id."""


@dataclass
class Site:
    """The additions of all features."""

    verify_password: VerifyPassword
    """Verifies passwords; a feature may add hashes of another kind."""

    menu: list[MenuEntry] = field(default_factory=list)
    """Entries of the navigation bar."""
    start_page: MenuEntry | None = None
    """The link on the home page for users who are logged in."""
    admin_menu: list[MenuEntry] = field(default_factory=list)
    """Entries of the administration menu."""
    admin_user_actions: list[AdminUserAction] = field(default_factory=list)
    """Forms on the administration page of a user."""
    footer_menu: list[MenuEntry] = field(default_factory=list)
    """Links in the footer."""
    login_cards: list[str] = field(default_factory=list)
    """Templates included in the login page."""
    register_cards: list[str] = field(default_factory=list)
    """Templates included in the registration page."""
    account_cards: list[str] = field(default_factory=list)
    """Templates included in the account page."""
    personal_data: list[PersonalDataSection] = field(default_factory=list)
    tables_not_exported: dict[str, str] = field(default_factory=dict)
    """Tables with rows of users that are not exported, with the reason."""
    in_use_conditions: list[Callable[[], ColumnElement[bool]]] = field(default_factory=list)
    """SQL conditions on `users`. Unconfirmed accounts that meet one are in use, and not deleted."""
    proof_methods: list[ProofMethod] = field(default_factory=list)
    second_factors: list[SecondFactor] = field(default_factory=list)
    trusts_browser: "Callable[[User], bool]" = lambda user: False
    """Tells whether a login of the user in this browser needs no second factor."""
    has_other_login: list[Callable[[AsyncSession, int], Awaitable[bool]]] = field(
        default_factory=list
    )
    """Tell whether a user, given by id, can log in other than with a password."""
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

    @cached_property
    def footer(self) -> list[MenuEntry]:
        """The sorted links in the footer. All features are registered before the first page."""
        return sorted(self.footer_menu, key=attrgetter("position"))

    async def can_log_in(self, session: AsyncSession, user: "User") -> bool:
        """Return whether a user has a password or another way to log in.

        A feature asks after it has removed one of these ways, in the same transaction and with the
        lock of `accounts.lock_user()`, and rolls back if none is left.
        """
        return user.has_password or await self.can_log_in_without_password(session, user.id)

    async def can_log_in_without_password(self, session: AsyncSession, user_id: int) -> bool:
        """Return whether a user can log in other than with a password."""
        for has_login in self.has_other_login:
            if await has_login(session, user_id):
                return True
        return False

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
    from app.user import passwords

    app.extensions["site"] = site = Site(verify_password=passwords.verify_password)
    app.jinja_env.globals["site"] = site


def get_site(app: Quart) -> Site:
    """Return the `Site` of an application, for use in the `init_app` of a feature."""
    site: Site = app.extensions["site"]
    return site
