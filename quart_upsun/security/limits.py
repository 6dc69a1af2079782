"""Rate limits, shared by all processes and instances through PostgreSQL.

The generic cell rate algorithm: a row holds the time until which a client's share is used up, so
one statement asks and counts. https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm

Why not quart-rate-limiter: docs/decisions/rate-limits.md.
"""

import hashlib
import hmac
import ipaddress
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

from quart import current_app, request
from sqlalchemy import text
from werkzeug.exceptions import TooManyRequests

from quart_upsun.current import current_toolkit
from quart_upsun.database import ReadOnlyDatabaseError, read
from quart_upsun.identity import session_user
from quart_upsun.policy import declare

P = ParamSpec("P")
T = TypeVar("T")

# Rows of one limit at most, whoever comes: clients whose hashes are equal share one.
BUCKETS = 2**18
IPV6_NETWORK = 64  # bits of an address; whoever has one address has the whole network

COUNT_REQUEST = text(
    """
    INSERT INTO rate_limits AS share (name, bucket, used_until)
    VALUES (:name, :bucket, now() + :interval)
    ON CONFLICT (name, bucket) DO UPDATE
    SET used_until = greatest(share.used_until, now()) + :interval
    WHERE greatest(share.used_until, now()) + :interval <= now() + :window
    RETURNING true
    """
)
SELECT_WAIT = text(
    """
    SELECT extract(epoch FROM used_until + :interval - (now() + :window))
    FROM rate_limits WHERE name = :name AND bucket = :bucket
    """
)
RESET_LIMIT = text("DELETE FROM rate_limits WHERE name = :name AND bucket = :bucket")
DELETE_EXPIRED = text(
    """
    DELETE FROM rate_limits WHERE (name, bucket) IN (
        SELECT name, bucket FROM rate_limits WHERE used_until < now()
        ORDER BY used_until LIMIT 1000 FOR UPDATE SKIP LOCKED
    )
    """
)
CLEANUP_PROBABILITY = 0.01  # of all requests that count


@dataclass(frozen=True)
class Limit:
    """So many requests at once, and as many again in so many seconds, evenly."""

    name: str
    count: int
    seconds: int

    async def count_request(self, subject: str) -> int:
        """Count a request of `subject`; return 0, or the seconds to wait if it is too early.

        A refused request costs the client nothing: who waits as told is served.

        Raises:
            DatabaseUnavailableError: the database does not answer, or is read-only.
        """
        if current_toolkit().database.is_read_only:
            raise ReadOnlyDatabaseError
        share = self._share(subject)
        # One statement is a transaction of its own, in one round trip instead of three.
        async with read() as session:
            if random.random() < CLEANUP_PROBABILITY:  # noqa: S311
                await session.execute(DELETE_EXPIRED)
            if await session.scalar(COUNT_REQUEST, share):
                return 0
            wait = await session.scalar(SELECT_WAIT, share)
        return max(1, math.ceil(wait or 0))

    async def require(self, subject: str) -> None:
        """Count a request of `subject`.

        Raises:
            TooManyRequests: it is too early.
        """
        if wait := await self.count_request(subject):
            raise TooManyRequests(retry_after=wait)

    async def reset(self, subject: str) -> None:
        """Give `subject` its whole share back."""
        async with read() as session:
            await session.execute(RESET_LIMIT, self._share(subject))

    def _share(self, subject: str) -> dict[str, object]:
        """Return the parameters of the statements. No address or name is kept, only a hash."""
        key: str = current_app.config["LIMITS_KEY"]
        digest = hmac.digest(key.encode(), f"{self.name}:{subject}".encode(), hashlib.sha256)
        return {
            "name": self.name,
            "bucket": int.from_bytes(digest[:4]) % BUCKETS,
            "interval": timedelta(seconds=self.seconds / self.count),
            "window": timedelta(seconds=self.seconds),
        }


def by_client() -> str:
    """Return what stands for the client: its address, as the edge trusts it."""
    try:
        address = ipaddress.ip_address(request.remote_addr or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_NETWORK), strict=False))
    return str(address)


def by_account() -> str:
    """Return what stands for the user who is logged in; for a stranger, the client."""
    user = session_user()
    return f"user {user.id}" if user else by_client()


def is_search() -> bool:
    """Tell whether a request searches: whether its `q` has words."""
    return bool(request.args.get("q", "").strip())


def rate_limit(
    limit: Limit,
    by: Callable[[], str] = by_client,
    *,
    when: Callable[[], bool] | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Answer 429 with `Retry-After` to a client that asks a view too often.

    Args:
        limit: how often.
        by: returns what stands for the client.
        when: tells which requests count; None for all. The others cost no statement, and
            `no_rate_limit` says why they need no limit.

    While the database is read-only nothing can be counted. Then requests that only read are served
    without a limit, and all others are answered 503.
    """

    def decorate(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(view)
        async def counted(*args: P.args, **kwargs: P.kwargs) -> T:
            if when is None or when():
                try:
                    await limit.require(by())
                except ReadOnlyDatabaseError:
                    if request.method not in {"GET", "HEAD"}:
                        raise
            return await view(*args, **kwargs)

        return declare(counted, limit=limit, is_limit_partial=when is not None)

    return decorate
