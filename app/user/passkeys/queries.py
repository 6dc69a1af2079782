"""Queries and changes of passkeys. The functions take a database session and plain values."""

import secrets
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import site
from app.user import accounts
from app.user.audit_trail import Event
from app.user.models import User
from app.user.passkeys.ceremonies import Authenticated, KnownPasskey, Registered
from app.user.passkeys.models import Passkey, PasskeyOwner
from quart_upsun.database import Database
from quart_upsun.security import audit

MAX_PASSKEYS = 20  # of one user
HANDLE_BYTES = 32


class TooManyPasskeysError(Exception):
    """The user already has `MAX_PASSKEYS` passkeys."""


class PasskeyExistsError(Exception):
    """The passkey is registered already, with this or another account."""


class NoPasskeyError(Exception):
    """The user has no passkey of this host."""


class LastLoginError(Exception):
    """The passkey is the user's only way to log in."""


class CounterError(Exception):
    """The counter of a passkey did not increase: a copy of it may exist."""


class FoundPasskey(NamedTuple):
    """A passkey, and what is needed to verify a response of it."""

    id: int
    user_id: int
    public_key: bytes
    handle: bytes


async def user_handle(session: AsyncSession, user_id: int) -> bytes:
    """Return the random handle of a user, which is created on first use."""
    create = (
        insert(PasskeyOwner)
        .values(user_id=user_id, handle=secrets.token_bytes(HANDLE_BYTES))
        .on_conflict_do_nothing()
    )
    await session.execute(create)
    query = select(PasskeyOwner.handle).where(PasskeyOwner.user_id == user_id)
    return (await session.scalars(query)).one()


async def known_passkeys(session: AsyncSession, user_id: int, rp_id: str) -> list[KnownPasskey]:
    """Return the passkeys that a browser may use for a user of this host."""
    query = select(Passkey.credential_id, Passkey.transports).where(
        Passkey.user_id == user_id, Passkey.rp_id == rp_id
    )
    return [KnownPasskey(*row) for row in await session.execute(query)]


async def list_passkeys(
    session: AsyncSession, user_id: int
) -> Sequence[Row[int, str, str, bool, datetime, datetime | None]]:
    """Return a user's passkeys, newest first, without their keys."""
    rows = await session.execute(
        select(
            Passkey.id,
            Passkey.name,
            Passkey.rp_id,
            Passkey.is_backed_up,
            Passkey.created_at,
            Passkey.last_used_at,
        )
        .where(Passkey.user_id == user_id)
        .order_by(Passkey.id.desc())
    )
    return rows.all()


async def has_passkey(session: AsyncSession, user_id: int, rp_id: str) -> bool:
    """Return whether a user can log in to this host with a passkey."""
    query = select(exists().where(Passkey.user_id == user_id, Passkey.rp_id == rp_id))
    return bool(await session.scalar(query))


async def is_required(session: AsyncSession, user_id: int, rp_id: str) -> bool:
    """Return whether a login with the password also needs a passkey.

    Not if the user has no passkey of this host: when the site moves to another host, its passkeys
    stop working, and users would be locked out.
    """
    query = select(
        exists().where(
            PasskeyOwner.user_id == user_id,
            PasskeyOwner.is_required,
            Passkey.user_id == PasskeyOwner.user_id,
            Passkey.rp_id == rp_id,
        )
    )
    return bool(await session.scalar(query))


async def set_required(session: AsyncSession, user: User, required: bool, rp_id: str) -> User:
    """Set whether a login with the password also needs a passkey, and email the user.

    A change ends all sessions of the user, and with them the trust in browsers: a session that
    began earlier has to pass both factors.

    Returns:
        The user, with a new session version if the setting has changed.

    Raises:
        NoPasskeyError: the user has no passkey of this host.
        SessionEndedError: the user's session has been revoked.
    """
    await accounts.lock_user(session, user)
    if required and not await has_passkey(session, user.id, rp_id):
        raise NoPasskeyError
    change = (
        update(PasskeyOwner)
        .where(PasskeyOwner.user_id == user.id, PasskeyOwner.is_required != required)
        .values(is_required=required)
        .returning(PasskeyOwner.user_id)
    )
    if await session.scalar(change) is None:
        return user
    changed = await accounts.renew_session_version(session, user)
    event = Event.PASSKEY_REQUIRED if required else Event.PASSKEY_NOT_REQUIRED
    await audit.record(session, event, user.id)
    await accounts.notify(session, user, "passkey-required" if required else "passkey-not-required")
    return changed


async def add_passkey(
    session: AsyncSession, user: User, registered: Registered, *, rp_id: str, name: str
) -> None:
    """Store a new passkey, and email its owner.

    Args:
        session: of `write()`.
        user: the owner, as the current session loaded them.
        registered: the verified response.
        rp_id: the host it is for.
        name: a label for the user.

    Raises:
        SessionEndedError: the user's session has been revoked; a passkey would outlive it.
        TooManyPasskeysError: the user already has `MAX_PASSKEYS` passkeys.
        PasskeyExistsError: it is registered already.
    """
    await accounts.lock_user(session, user)
    count = select(func.count()).where(Passkey.user_id == user.id)
    if (await session.scalar(count) or 0) >= MAX_PASSKEYS:
        raise TooManyPasskeysError
    session.add(
        Passkey(
            user_id=user.id,
            rp_id=rp_id,
            credential_id=registered.credential_id,
            public_key=registered.public_key,
            sign_count=registered.sign_count,
            transports=registered.transports,
            is_backed_up=registered.is_backed_up,
            name=name,
        )
    )
    try:
        await session.flush()
    except IntegrityError:
        raise PasskeyExistsError from None
    await audit.record(session, Event.PASSKEY_ADDED, user.id)
    await accounts.notify(session, user, "passkey-added", passkey=name)


async def rename_passkey(session: AsyncSession, user_id: int, passkey_id: int, name: str) -> bool:
    """Rename one of a user's passkeys; return False if the user has no such passkey."""
    change = (
        update(Passkey)
        .where(Passkey.id == passkey_id, Passkey.user_id == user_id)
        .values(name=name)
        .returning(Passkey.id)
    )
    if await session.scalar(change) is None:
        return False
    await audit.record(session, Event.PASSKEY_RENAMED, user_id)
    return True


async def remove_passkey(session: AsyncSession, user: User, passkey_id: int, rp_id: str) -> bool:
    """Remove one of a user's passkeys, and email its owner.

    Returns:
        False if the user has no such passkey.

    Raises:
        SessionEndedError: the user's session has been revoked.
        LastLoginError: the user could not log in any more.
    """
    await accounts.lock_user(session, user)
    gone = (
        delete(Passkey)
        .where(Passkey.id == passkey_id, Passkey.user_id == user.id)
        .returning(Passkey.name)
    )
    name = await session.scalar(gone)
    if name is None:
        return False
    if not await site.can_log_in(session, user):
        raise LastLoginError
    if not await has_passkey(session, user.id, rp_id):
        # Otherwise the next passkey would be required, too.
        await session.execute(
            update(PasskeyOwner).where(PasskeyOwner.user_id == user.id).values(is_required=False)
        )
    await audit.record(session, Event.PASSKEY_REMOVED, user.id)
    await accounts.notify(session, user, "passkey-removed", passkey=name, by_operator=False)
    return True


async def remove_all_passkeys(
    session: AsyncSession, user: User, *, actor_id: int | None = None
) -> int:
    """Remove all passkeys of a user who has lost them, and return their number.

    Ends all sessions of the user, because the lost device may be logged in.

    Args:
        session: a session of `write()`.
        user: the user.
        actor_id: the administrator, if one does it.
    """
    gone = delete(Passkey).where(Passkey.user_id == user.id).returning(Passkey.name)
    names = (await session.scalars(gone)).all()
    await session.execute(
        update(PasskeyOwner).where(PasskeyOwner.user_id == user.id).values(is_required=False)
    )
    for name in names:
        await audit.record(session, Event.PASSKEY_REMOVED, user.id, actor_id=actor_id)
        await accounts.notify(session, user, "passkey-removed", passkey=name, by_operator=True)
    await session.execute(
        update(User).where(User.id == user.id).values(**accounts.END_SESSIONS_VALUES)
    )
    return len(names)


async def find_passkey(
    session: AsyncSession, credential_id: bytes, rp_id: str
) -> FoundPasskey | None:
    """Return the passkey with a credential id, if it was made for this host."""
    row = await session.execute(
        select(Passkey.id, Passkey.user_id, Passkey.public_key, PasskeyOwner.handle)
        .join(PasskeyOwner, PasskeyOwner.user_id == Passkey.user_id)
        .where(Passkey.credential_id == credential_id, Passkey.rp_id == rp_id)
    )
    found = row.first()
    return FoundPasskey(*found) if found else None


async def record_use(session: AsyncSession, passkey_id: int, used: Authenticated) -> None:
    """Record that a passkey was used, and its new counter.

    One statement compares and sets the counter, so that of two concurrent responses with the same
    counter only one is accepted.

    Raises:
        CounterError: the counter did not increase, or the passkey was removed meanwhile.
    """
    change = (
        update(Passkey)
        .where(
            Passkey.id == passkey_id,
            # Synced passkeys have no counter and always send 0.
            Passkey.sign_count < used.sign_count if used.sign_count else Passkey.sign_count == 0,
        )
        .values(sign_count=used.sign_count, is_backed_up=used.is_backed_up, last_used_at=func.now())
        .returning(Passkey.id)
    )
    if await session.scalar(change) is None:
        raise CounterError


async def export_passkeys(
    database: Database, user_id: int
) -> AsyncIterator[Sequence[dict[str, Any]]]:
    """Yield a user's passkeys, without the keys, for the personal data export."""
    async with database.read() as session:
        found = await list_passkeys(session, user_id)
    yield [
        {
            "name": each.name,
            "host": each.rp_id,
            "created_at": each.created_at.isoformat(),
            "last_used_at": each.last_used_at and each.last_used_at.isoformat(),
        }
        for each in found
    ]
