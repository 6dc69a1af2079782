"""Turn two-factor authentication on and off, and accept codes.

Turning it on or off ends all sessions of the user. Every earlier session has to prove both
factors, and browsers that were trusted before no longer are.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.user import accounts
from app.user.audit_trail import Event
from app.user.models import User
from app.user.two_factor import recovery_codes, totp
from app.user.two_factor.models import TwoFactorSecret
from quart_upsun.logging import get_logger
from quart_upsun.security import audit, encryption
from quart_upsun.security.encryption import DecryptionError

log = get_logger(__name__)


class Enrolled(NamedTuple):
    """A user who has just turned on two-factor authentication."""

    user: User
    """With the new session version."""
    recovery_codes: Sequence[str]


class NotEnabledError(Exception):
    """The user has no second factor, or a concurrent request has turned it off."""


async def is_enabled(session: AsyncSession, user_id: int) -> bool:
    """Return whether logins of a user need a code."""
    query = select(TwoFactorSecret.user_id).where(
        TwoFactorSecret.user_id == user_id, TwoFactorSecret.confirmed_at.is_not(None)
    )
    return await session.scalar(query) is not None


async def start(session: AsyncSession, user: User) -> None:
    """Store a new secret, which takes effect once a code confirms it.

    Replaces an unconfirmed secret, and does nothing if the user has a confirmed one.

    Args:
        session: a session of `write()`.
        user: the user as the current session loaded them.

    Raises:
        SessionEndedError: the session of the user has ended. The same applies to the functions
            below that take a `User`.
    """
    await accounts.lock_user(session, user)
    # In a thread, because the first call imports a library.
    secret = await asyncio.to_thread(
        encryption.encrypt, _purpose(user.id), totp.generate_secret().encode()
    )
    new = insert(TwoFactorSecret).values(user_id=user.id, secret=secret)
    await session.execute(
        new.on_conflict_do_update(
            index_elements=[TwoFactorSecret.user_id],
            set_={"secret": new.excluded.secret, "created_at": func.now()},
            where=TwoFactorSecret.confirmed_at.is_(None),
        )
    )


async def get_unconfirmed_secret(session: AsyncSession, user_id: int) -> str | None:
    """Return the secret to show, or None. A confirmed secret is never shown again."""
    query = select(TwoFactorSecret).where(
        TwoFactorSecret.user_id == user_id, TwoFactorSecret.confirmed_at.is_(None)
    )
    found = await session.scalar(query)
    return await _decrypt(found) if found else None


async def confirm(session: AsyncSession, user: User, code: str) -> Enrolled | None:
    """Turn on two-factor authentication; return None if the code is wrong."""
    await accounts.lock_user(session, user)
    found = await _lock_secret(session, user.id)
    if found is None or found.confirmed_at is not None:
        return None
    secret = await _decrypt(found)
    step = totp.find_step(secret, code) if secret else None
    if step is None:
        return None
    await session.execute(
        update(TwoFactorSecret)
        .where(TwoFactorSecret.user_id == user.id)
        .values(confirmed_at=func.now(), last_used_step=step)
    )
    codes = await recovery_codes.replace(session, user.id)
    changed = await accounts.renew_session_version(session, user)
    await audit.record(session, Event.TWO_FACTOR_ENABLED, user.id)
    await accounts.notify(session, user, "two-factor-enabled")
    return Enrolled(changed, codes)


async def use_code(session: AsyncSession, user_id: int, code: str) -> bool:
    """Accept a code of the authenticator app, once.

    The lock makes concurrent requests with the same code wait: the first is accepted.

    Args:
        session: a session of `write()`.
        user_id: the user.
        code: six ASCII digits.
    """
    found = await _lock_secret(session, user_id)
    if found is None or found.confirmed_at is None:
        return False
    secret = await _decrypt(found)
    step = totp.find_step(secret, code) if secret else None
    if secret is None or step is None:
        return False
    if found.last_used_step is not None and step <= found.last_used_step:
        return False
    await session.execute(
        update(TwoFactorSecret)
        .where(TwoFactorSecret.user_id == user_id)
        # Encrypted again, so that the secrets of active users move to the current key.
        .values(last_used_step=step, secret=encryption.encrypt(_purpose(user_id), secret.encode()))
    )
    return True


async def use_recovery_code(session: AsyncSession, user: User, code: str) -> bool:
    """Accept a recovery code, once, and tell the user by email.

    Args:
        session: a session of `write()`.
        user: the user.
        code: a normalized code.
    """
    if not await is_enabled(session, user.id):
        return False
    if not await recovery_codes.use(session, user.id, code):
        return False
    await audit.record(session, Event.RECOVERY_CODE_USED, user.id)
    count = await recovery_codes.count_unused(session, user.id)
    await accounts.notify(session, user, "recovery-code-used", count=count)
    return True


async def renew_recovery_codes(session: AsyncSession, user: User) -> Sequence[str]:
    """Replace the recovery codes, and return the new ones.

    Raises:
        NotEnabledError: two-factor authentication is off.
    """
    await accounts.lock_user(session, user)
    found = await _lock_secret(session, user.id)
    if found is None or found.confirmed_at is None:
        raise NotEnabledError
    codes = await recovery_codes.replace(session, user.id)
    await audit.record(session, Event.RECOVERY_CODES_RENEWED, user.id)
    await accounts.notify(session, user, "recovery-codes-renewed")
    return codes


async def disable(session: AsyncSession, user: User) -> User:
    """Turn off two-factor authentication, and return the user with the new session version.

    Raises:
        NotEnabledError: it is already off.
    """
    await accounts.lock_user(session, user)
    await _delete_secret(session, user.id)
    changed = await accounts.renew_session_version(session, user)
    await audit.record(session, Event.TWO_FACTOR_DISABLED, user.id)
    await accounts.notify(session, user, "two-factor-disabled", by_operator=False)
    return changed


async def disable_for(session: AsyncSession, user: User, *, actor_id: int | None = None) -> None:
    """Turn off two-factor authentication of another user, whose device is lost.

    Args:
        session: a session of `write()`.
        user: the user.
        actor_id: the administrator, if one does it.

    Raises:
        NotEnabledError: it is already off.
    """
    await _delete_secret(session, user.id)
    await session.execute(
        update(User).where(User.id == user.id).values(**accounts.END_SESSIONS_VALUES)
    )
    await audit.record(session, Event.TWO_FACTOR_DISABLED, user.id, actor_id=actor_id)
    await accounts.notify(session, user, "two-factor-disabled", by_operator=True)


async def reencrypt_secrets(session: AsyncSession) -> tuple[int, int]:
    """Encrypt all secrets with the current key.

    Returns:
        How many were encrypted again, and how many no key can decrypt.
    """
    done, failed = 0, 0
    query = select(TwoFactorSecret).with_for_update()
    for each in (await session.scalars(query)).all():
        try:
            each.secret = encryption.rotate(_purpose(each.user_id), each.secret)
            done += 1
        except DecryptionError:
            failed += 1
    return done, failed


async def _lock_secret(session: AsyncSession, user_id: int) -> TwoFactorSecret | None:
    query = select(TwoFactorSecret).where(TwoFactorSecret.user_id == user_id).with_for_update()
    return await session.scalar(query)


async def _delete_secret(session: AsyncSession, user_id: int) -> None:
    gone = (
        delete(TwoFactorSecret)
        .where(TwoFactorSecret.user_id == user_id, TwoFactorSecret.confirmed_at.is_not(None))
        .returning(TwoFactorSecret.user_id)
    )
    if await session.scalar(gone) is None:
        raise NotEnabledError
    await recovery_codes.delete_all(session, user_id)


def _purpose(user_id: int) -> str:
    return f"two-factor {user_id}"


async def _decrypt(found: TwoFactorSecret) -> str | None:
    """Return the secret, or None if its key is lost. Recovery codes still work then."""
    try:
        # In a thread, because the first call imports a library.
        secret = await asyncio.to_thread(encryption.decrypt, _purpose(found.user_id), found.secret)
        return secret.decode()
    except DecryptionError:
        log.error("two-factor secret cannot be decrypted", user_id=found.user_id)
        return None
