"""Challenges: random values that a passkey signs, each for one browser, purpose and use.

A challenge is not stored. The page gets it in a signed token, which expires and is bound to the
purpose, to the session or pending login, and to a cookie of the browser. A signature alone could be
replayed until it expires, so an answered challenge is recorded in a table. Recording the used ones
instead of the issued ones means that merely opening the login page writes nothing.
"""

import hashlib
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import timedelta
from typing import NamedTuple

from quart import Response, current_app, request
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.user.passkeys.models import UsedChallenge
from quart_upsun.http.cookies import set_cookie
from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.security import signing

LIFETIME_SECONDS = 300
CHALLENGE_BYTES = 32
# What a challenge is for. One that was issued for one purpose is not valid for another.
REGISTER, LOG_IN, SECOND_FACTOR, PROVE = "register", "log in", "second factor", "prove"
NONCE_BYTES = 24
NONCE_LENGTH = 32  # of the nonce in base64url


class InvalidChallengeError(Exception):
    """The challenge is unknown, expired or used, or belongs to another browser or session."""


class Challenge(NamedTuple):
    """A challenge, and the token with which the page sends it back."""

    value: bytes
    token: str


def issue(purpose: str, subject: str, nonce: str) -> Challenge:
    """Issue a challenge.

    Args:
        purpose: what it is for.
        subject: the session or pending login it is for; empty for a login.
        nonce: the nonce of the browser; see `browser_nonce`.
    """
    value = secrets.token_bytes(CHALLENGE_BYTES)
    text = urlsafe_b64encode(value).decode()
    token = signing.sign("passkey", [purpose, subject, _fingerprint(nonce), text])
    return Challenge(value, token)


def read(token: str, purpose: str, subject: str) -> bytes:
    """Return the challenge in a token that the browser sent back.

    Raises:
        InvalidChallengeError: the token is invalid or has expired, or it was issued for another
            purpose, session or browser.
    """
    content = signing.verify("passkey", token, max_age=LIFETIME_SECONDS)
    nonce = request.cookies.get(_cookie_name(), "")
    if not content or content[:3] != [purpose, subject, _fingerprint(nonce)]:
        raise InvalidChallengeError
    return urlsafe_b64decode(content[3])


async def use(session: AsyncSession, value: bytes) -> None:
    """Record that a challenge was answered. The first answer counts, even if it is wrong.

    Args:
        session: a session of `write()`, whose transaction must not depend on the answer.
        value: the challenge.

    Raises:
        InvalidChallengeError: it was answered before. The unique index decides between concurrent
            requests.
    """
    record = (
        insert(UsedChallenge)
        .values(challenge=value)
        .on_conflict_do_nothing()
        .returning(UsedChallenge.id)
    )
    if await session.scalar(record) is None:
        raise InvalidChallengeError


def browser_nonce() -> str:
    """Return the nonce in the browser's cookie, or a new one. Several tabs share it."""
    nonce = request.cookies.get(_cookie_name(), "")
    return nonce if len(nonce) == NONCE_LENGTH else secrets.token_urlsafe(NONCE_BYTES)


def remember_nonce(response: Response, nonce: str) -> None:
    """Set the cookie with the nonce, for as long as the challenge is valid."""
    set_cookie(
        response,
        _cookie_name(),
        nonce,
        max_age=LIFETIME_SECONDS,
        samesite="Strict",
    )


async def delete_expired(running: JobContext) -> None:
    """Delete used challenges that have expired, and are refused for that reason."""
    is_old = UsedChallenge.used_at < func.now() - timedelta(seconds=2 * LIFETIME_SECONDS)
    await cleanup.delete_in_batches(
        running.database, cleanup.delete_oldest_statement(UsedChallenge.id, is_old)
    )


CLEANUP = Schedule(
    Task("delete used challenges", delete_expired, timeout=cleanup.TIMEOUT_SECONDS), "27 3 * * *"
)


def _cookie_name() -> str:
    name: str = current_app.config["PASSKEY_COOKIE_NAME"]
    return name


def _fingerprint(nonce: str) -> str:
    """Return a hash of the nonce: the token is in pages, which scripts can read."""
    return hashlib.sha256(nonce.encode()).hexdigest()
