"""Create, authenticate and revoke personal access tokens.

A token has 32 random bytes, so it cannot be guessed, and a plain SHA-256 digest is enough to store
it: a slow hash would add nothing. Its prefix and checksum let secret scanners recognize it, and let
malformed tokens be rejected without a database query.
"""

import base64
import hashlib
import re
import secrets
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Row,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import database
from app.user.accounts import SessionEndedError
from app.user.audit_trail import Event
from app.user.models import User
from app.user.tokens.models import AccessToken
from quart_upsun.api.auth import TokenUser
from quart_upsun.database import Base, Connection, Database, ReadOnlyDatabaseError
from quart_upsun.database.log_position import recent_position
from quart_upsun.database.statements import Statement
from quart_upsun.security import audit

PREFIX = "qu_"
TOKEN_PATTERN = re.compile(rf"{PREFIX}([A-Za-z0-9_-]{{43}})([A-Za-z0-9_-]{{6}})\Z")
LIFETIMES_DAYS = (7, 30, 90, 365)
MAX_TOKENS = 20  # of one user, including expired tokens
LAST_USED_RESOLUTION = timedelta(minutes=1)  # of `last_used_at`


class TokenOwner(NamedTuple):
    """The owner of a token, and its scopes."""

    id: int
    username: str
    scopes: list[str]
    token_id: int
    is_use_due: bool
    """Whether `last_used_at` is older than `LAST_USED_RESOLUTION`; see `record_use`."""
    position: int | None = None
    """What the owner has written a moment ago, if there is a read replica."""


# Built once, from tables instead of entities: this runs with every API request.
_tokens = Base.metadata.tables[AccessToken.__tablename__]
_users = Base.metadata.tables[User.__tablename__]
_is_use_due = or_(
    _tokens.c.last_used_at.is_(None), _tokens.c.last_used_at < func.now() - LAST_USED_RESOLUTION
)
_by_digest = (
    select(_users.c.id, _users.c.username, _tokens.c.scopes, _tokens.c.id, _is_use_due)
    .join_from(_tokens, _users, _users.c.id == _tokens.c.user_id)
    .where(
        _tokens.c.digest == bindparam("digest"),
        _tokens.c.expires_at > func.now(),
        _users.c.deactivated_at.is_(None),
    )
)
SELECT_BY_DIGEST = Statement(_by_digest, lambda values: TokenOwner(*values))
# With a read replica.
SELECT_WITH_POSITION = Statement(
    _by_digest.add_columns(recent_position(_users.c.id)), TokenOwner._make
)


class TooManyTokensError(Exception):
    """The user already has `MAX_TOKENS` tokens."""


def generate_token() -> str:
    """Generate a random token."""
    secret = secrets.token_urlsafe(32)
    return f"{PREFIX}{secret}{_checksum(secret)}"


def hash_token(token: str) -> bytes:
    """Return the SHA-256 digest under which a token is stored."""
    return hashlib.sha256(token.encode()).digest()


def is_well_formed(token: str) -> bool:
    """Return whether a string has the format of a token, with a valid checksum.

    Anything else can be rejected without a database query.
    """
    found = TOKEN_PATTERN.match(token)
    return found is not None and _checksum(found[1]) == found[2]


async def find_owner(
    connection: Connection, token: str, *, with_position: bool = False
) -> TokenOwner | None:
    """Return the owner of a token, in one query.

    Returns None if the token is unknown or has expired, or if its owner is deactivated.

    Args:
        connection: of `direct(exact=True)`: a revoked token must not be found.
        token: the token.
        with_position: whether to read the `position`, too.
    """
    statement = SELECT_WITH_POSITION if with_position else SELECT_BY_DIGEST
    return await statement.first(connection, digest=hash_token(token))


async def record_use(session: AsyncSession, token_id: int) -> None:
    """Update `last_used_at` of a token, at most once per `LAST_USED_RESOLUTION`.

    Of concurrent requests only one writes: the others wait for the row lock, then find it updated.
    """
    await session.execute(
        update(_tokens).where(_tokens.c.id == token_id, _is_use_due).values(last_used_at=func.now())
    )


async def authenticate(token: str) -> TokenUser | None:
    """Return the owner of a token and record its use; None if it is unknown, revoked or expired."""
    if not is_well_formed(token):
        return None
    async with database.direct(exact=True) as connection:
        found = await find_owner(connection, token, with_position=database.replica is not None)
    if found is None:
        return None
    if found.is_use_due:
        with suppress(ReadOnlyDatabaseError):  # requests that only read are still served
            async with database.write() as session:
                await record_use(session, found.token_id)
    return TokenUser(found.id, found.username, frozenset(found.scopes), found.position or 0)


async def create_token(
    session: AsyncSession, user: User, *, name: str, scopes: Sequence[str], days: int
) -> str:
    """Create a token and return it. It is not stored, so it cannot be returned again.

    Args:
        session: of `write()`.
        user: the owner, as the current session loaded them.
        name: a label for the user.
        scopes: names of scopes.
        days: lifetime in days.

    Raises:
        SessionEndedError: the user's session has been revoked; a token would outlive it.
        TooManyTokensError: the user already has `MAX_TOKENS` tokens.
    """
    # The lock also serializes concurrent requests of the same user, so that the count is right.
    current_session = (
        select(User.id)
        .where(
            User.id == user.id,
            User.session_version == user.session_version,
            User.deactivated_at.is_(None),
        )
        .with_for_update(key_share=True)
    )
    if await session.scalar(current_session) is None:
        raise SessionEndedError
    count = select(func.count()).where(AccessToken.user_id == user.id)
    if (await session.scalar(count) or 0) >= MAX_TOKENS:
        raise TooManyTokensError
    token = generate_token()
    await session.execute(
        insert(AccessToken).values(
            user_id=user.id,
            name=name,
            digest=hash_token(token),
            scopes=sorted(scopes),
            expires_at=func.now() + timedelta(days=days),
        )
    )
    await audit.record(session, Event.TOKEN_CREATED, user.id)
    return token


async def list_tokens(
    session: AsyncSession, user_id: int
) -> Sequence[Row[int, str, list[str], datetime, datetime, datetime | None, bool]]:
    """Return a user's tokens, newest first, each with `is_expired`."""
    rows = await session.execute(
        select(
            AccessToken.id,
            AccessToken.name,
            AccessToken.scopes,
            AccessToken.created_at,
            AccessToken.expires_at,
            AccessToken.last_used_at,
            (AccessToken.expires_at <= func.now()).label("is_expired"),
        )
        .where(AccessToken.user_id == user_id)
        .order_by(AccessToken.id.desc())
    )
    return rows.all()


async def revoke_token(session: AsyncSession, user_id: int, token_id: int) -> bool:
    """Revoke one of a user's tokens; return False if the user has no such token."""
    gone = (
        delete(AccessToken)
        .where(AccessToken.id == token_id, AccessToken.user_id == user_id)
        .returning(AccessToken.id)
    )
    if await session.scalar(gone) is None:
        return False
    await audit.record(session, Event.TOKEN_DELETED, user_id)
    return True


async def revoke_all_tokens(
    session: AsyncSession, user_id: int, *, actor_id: int | None = None
) -> None:
    """Revoke all of a user's tokens.

    Args:
        session: of `write()`.
        user_id: the owner.
        actor_id: the user who revokes them, if not the owner.
    """
    gone = delete(AccessToken).where(AccessToken.user_id == user_id).returning(AccessToken.id)
    for _ in (await session.scalars(gone)).all():
        await audit.record(session, Event.TOKEN_DELETED, user_id, actor_id=actor_id)


async def export_tokens(
    database: Database, user_id: int
) -> AsyncIterator[Sequence[dict[str, Any]]]:
    """Yield a user's tokens, without the secrets, for the personal data export."""
    async with database.read() as session:
        found = await list_tokens(session, user_id)
    yield [
        {
            "name": each.name,
            "scopes": each.scopes,
            "created_at": each.created_at.isoformat(),
            "expires_at": each.expires_at.isoformat(),
            "last_used_at": each.last_used_at and each.last_used_at.isoformat(),
        }
        for each in found
    ]


def has_valid_token() -> ColumnElement[bool]:
    """Return the SQL condition that a user has an unexpired token."""
    return exists().where(AccessToken.user_id == User.id, AccessToken.expires_at > func.now())


def _checksum(secret: str) -> str:
    return base64.urlsafe_b64encode(zlib.crc32(secret.encode()).to_bytes(4)).decode().rstrip("=")
