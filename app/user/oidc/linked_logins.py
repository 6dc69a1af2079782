"""Find, create, link and unlink logins. The functions take a database session and plain values."""

import re
import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import site
from app.user import accounts
from app.user.audit_trail import Event
from app.user.forms import USERNAME_PATTERN, normalize_email
from app.user.models import EMAIL_LENGTH, USERNAME_LENGTH, User
from app.user.oidc.models import LinkedLogin
from app.user.oidc.providers import Identity
from quart_upsun.database import Database
from quart_upsun.security import audit

MAX_LINKED = 10  # logins of one user
MIN_USERNAME_LENGTH = 3
USERNAME_ATTEMPTS = 5


class UnverifiedEmailError(Exception):
    """The provider does not vouch for an email address, so no account can be created."""


class EmailTakenError(Exception):
    """An account has the email address already."""


class LinkedElsewhereError(Exception):
    """Another account is linked to this login."""


class TooManyLoginsError(Exception):
    """The user already has `MAX_LINKED` logins."""


class LastLoginError(Exception):
    """Without this login the user could not log in any more."""


async def find_user(session: AsyncSession, identity: Identity) -> User | None:
    """Return the user of a login, and record its use and its email address; None if it is unknown.

    The account's own email address stays as it is, also if that at the provider has changed.

    Args:
        session: of `write()`.
        identity: the account at the provider.
    """
    use = (
        update(LinkedLogin)
        .where(*_is(identity))
        .values(last_used_at=func.now(), email=_shown_email(identity))
        .returning(LinkedLogin.user_id)
    )
    user_id = await session.scalar(use)
    return None if user_id is None else await accounts.get_user(session, user_id)


async def create_user(session: AsyncSession, identity: Identity) -> User:
    """Create an account without a password, whose email address the provider has verified.

    Unconfirmed claims of the address by other accounts do not count: the first to prove an address
    gets it.

    Args:
        session: of `write()`.
        identity: the account at the provider.

    Raises:
        UnverifiedEmailError: the provider does not say that the user owns the address.
        EmailTakenError: an account has confirmed the address. It is never taken over, because the
            provider would then decide who gets into accounts that it has nothing to do with.
    """
    if not identity.is_email_verified or identity.email is None:
        raise UnverifiedEmailError
    try:
        email = normalize_email(identity.email)
    except ValueError:
        raise UnverifiedEmailError from None
    owner = select(User.id).where(func.lower(User.email) == email.lower())
    if await session.scalar(owner) is not None:
        raise EmailTakenError
    username = await _free_username(session, identity.names)
    try:
        user = await accounts.create_user(
            session, username=username, email=email, password_hash=None, should_confirm=False
        )
        await accounts.confirm_email(session, user.id, email)
        await _insert(session, user.id, identity)
        await find_user(session, identity)  # this login is the first use
    except accounts.AccountTakenError as error:
        if error.field == "email":  # confirmed in the meantime
            raise EmailTakenError from None
        raise
    await session.refresh(user)
    return user


async def link(session: AsyncSession, user: User, identity: Identity, *, label: str) -> bool:
    """Link a login to a user, and tell them by mail; return False if it is linked already.

    Args:
        session: of `write()`.
        user: the owner, as the current session loaded them.
        identity: the account at the provider.
        label: the name of the provider.

    Raises:
        SessionEndedError: the user's session has ended; the login would outlive it.
        LinkedElsewhereError: another user has linked the login.
        TooManyLoginsError: the user already has `MAX_LINKED` logins.
    """
    await accounts.lock_user(session, user)
    owner = await session.scalar(select(LinkedLogin.user_id).where(*_is(identity)))
    if owner is not None and owner != user.id:
        raise LinkedElsewhereError
    if owner is not None:
        return False
    count = select(func.count()).where(LinkedLogin.user_id == user.id)
    if (await session.scalar(count) or 0) >= MAX_LINKED:
        raise TooManyLoginsError
    try:
        await _insert(session, user.id, identity)
    except IntegrityError:  # another user was faster
        raise LinkedElsewhereError from None
    await accounts.notify(session, user, "provider-linked", provider=label)
    return True


async def unlink(
    session: AsyncSession, user: User, login_id: int, *, labels: dict[str, str]
) -> None:
    """Unlink a login of a user, and tell them by mail.

    Args:
        session: of `write()`.
        user: the owner, as the current session loaded them.
        login_id: the login.
        labels: the names of the configured providers.

    Raises:
        SessionEndedError: the user's session has ended.
        LookupError: the user has no such login.
        LastLoginError: no other way to log in is left. Nothing is changed if the transaction is
            rolled back.
    """
    await accounts.lock_user(session, user)
    gone = (
        delete(LinkedLogin)
        .where(LinkedLogin.id == login_id, LinkedLogin.user_id == user.id)
        .returning(LinkedLogin.provider)
    )
    provider = await session.scalar(gone)
    if provider is None:
        raise LookupError
    if not await site.can_log_in(session, user):
        raise LastLoginError
    await audit.record(session, Event.PROVIDER_UNLINKED, user.id)
    await accounts.notify(
        session, user, "provider-unlinked", provider=labels.get(provider, provider)
    )


async def list_logins(session: AsyncSession, user_id: int) -> Sequence[LinkedLogin]:
    """Return the logins of a user, oldest first."""
    query = select(LinkedLogin).where(LinkedLogin.user_id == user_id).order_by(LinkedLogin.id)
    return (await session.scalars(query)).all()


async def has_login(session: AsyncSession, user_id: int, providers: Collection[str]) -> bool:
    """Return whether a user can log in with one of these providers."""
    found = exists().where(LinkedLogin.user_id == user_id, LinkedLogin.provider.in_(providers))
    return bool(await session.scalar(select(found)))


async def owns(session: AsyncSession, user_id: int, identity: Identity) -> bool:
    """Return whether a login is linked to a user."""
    found = exists().where(LinkedLogin.user_id == user_id, *_is(identity))
    return bool(await session.scalar(select(found)))


async def export_logins(
    database: Database, user_id: int
) -> AsyncIterator[Sequence[dict[str, Any]]]:
    """Yield a user's linked logins for the personal data export."""
    async with database.read() as session:
        found = await list_logins(session, user_id)
    yield [
        {
            "provider": each.provider,
            "issuer": each.issuer,
            "subject": each.subject,
            "email": each.email,
            "created_at": each.created_at.isoformat(),
            "last_used_at": each.last_used_at and each.last_used_at.isoformat(),
        }
        for each in found
    ]


async def _insert(session: AsyncSession, user_id: int, identity: Identity) -> None:
    session.add(
        LinkedLogin(
            user_id=user_id,
            provider=identity.provider,
            issuer=identity.issuer,
            subject=identity.subject,
            email=_shown_email(identity),
        )
    )
    await session.flush()
    await audit.record(session, Event.PROVIDER_LINKED, user_id)


def _is(identity: Identity) -> tuple[Any, ...]:
    return (
        LinkedLogin.provider == identity.provider,
        LinkedLogin.issuer == identity.issuer,
        LinkedLogin.subject == identity.subject,
    )


def _shown_email(identity: Identity) -> str | None:
    """Return the address to show; None if it would not fit or contains control characters."""
    email = identity.email
    return email if email and len(email) <= EMAIL_LENGTH and email.isprintable() else None


async def _free_username(session: AsyncSession, names: Sequence[str]) -> str:
    """Return a username that no user has, made of the names that the provider knows.

    The part of the email address before the @ is not used: members see each other's usernames.
    """
    wanted = next(filter(None, map(username_of, names)), None)
    if wanted is not None and await accounts.get_user_by_username(session, wanted) is None:
        return wanted
    for _ in range(USERNAME_ATTEMPTS):
        number = f"-{secrets.randbelow(900_000) + 100_000}"
        candidate = f"{(wanted or 'user')[: USERNAME_LENGTH - len(number)]}{number}"
        if await accounts.get_user_by_username(session, candidate) is None:
            return candidate
    raise accounts.AccountTakenError("username")


def username_of(name: str) -> str | None:
    """Return a valid username like a name; None if the name has too few letters that are allowed.

    Of an email address, which some providers call `preferred_username`, there is none.
    """
    if "@" in name:
        return None
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:USERNAME_LENGTH].strip("._-")
    is_valid = len(text) >= MIN_USERNAME_LENGTH and re.match(USERNAME_PATTERN, text)
    return text if is_valid else None
