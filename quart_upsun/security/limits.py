"""Rate limits in PostgreSQL, shared by all processes and instances.

They use the generic cell rate algorithm (GCRA): a row holds the time until which a client's quota
is used up, so that a single statement checks and counts a request.
https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm

docs/decisions/rate-limits.md says why quart-rate-limiter is not used.
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

# The maximum number of rows per limit. Clients with the same hash share a row.
BUCKETS = 2**18
IPV6_NETWORK = 64  # bits; a client usually has a whole /64 network

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
CLEANUP_PROBABILITY = 0.01  # share of the counted requests that also delete expired rows


@dataclass(frozen=True)
class Limit:
    """A rate limit: bursts of up to `count` requests, refilled evenly over `seconds`.

    `Limit("login", 5, 60)` allows five requests at once, and then one every 12 seconds.
    """

    name: str
    """Identifies the limit. Limits with the same name share their counters."""
    count: int
    seconds: int

    async def count_request(self, subject: str) -> int:
        """Count a request and return 0, or the seconds to wait if it exceeds the limit.

        Rejected requests are not counted, so waiting for that time is always enough.

        Args:
            subject: what is limited, such as an IP address or a user.

        Raises:
            DatabaseUnavailableError: the database does not respond or is read-only.
        """
        if current_toolkit().database.is_read_only:
            raise ReadOnlyDatabaseError
        parameters = self._parameters(subject)
        # AUTOCOMMIT: one round trip instead of three.
        async with read(exact=True) as session:
            if random.random() < CLEANUP_PROBABILITY:  # noqa: S311
                await session.execute(DELETE_EXPIRED)
            if await session.scalar(COUNT_REQUEST, parameters):
                return 0
            wait = await session.scalar(SELECT_WAIT, parameters)
        return max(1, math.ceil(wait or 0))

    async def require(self, subject: str) -> None:
        """Count a request, and raise if it exceeds the limit.

        Raises:
            TooManyRequests: the limit is exceeded. The exception sets `Retry-After`.
            DatabaseUnavailableError: the database does not respond or is read-only.
        """
        if wait := await self.count_request(subject):
            raise TooManyRequests(retry_after=wait)

    async def reset(self, subject: str) -> None:
        """Reset the limit for `subject`, for example after a successful login."""
        async with read(exact=True) as session:
            await session.execute(RESET_LIMIT, self._parameters(subject))

    def _parameters(self, subject: str) -> dict[str, object]:
        """Return the statements' parameters. Only a hash of the subject is stored."""
        key: str = current_app.config["LIMITS_KEY"]
        digest = hmac.digest(key.encode(), f"{self.name}:{subject}".encode(), hashlib.sha256)
        return {
            "name": self.name,
            "bucket": int.from_bytes(digest[:4]) % BUCKETS,
            "interval": timedelta(seconds=self.seconds / self.count),
            "window": timedelta(seconds=self.seconds),
        }


def by_client() -> str:
    """Return the rate limit key for the client: its IPv4 address or its IPv6 /64 network."""
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
    """Return the rate limit key for the logged-in user, or for the client if nobody is."""
    user = session_user()
    return f"user {user.id}" if user else by_client()


def is_search() -> bool:
    """Tell whether the request is a search: whether the query parameter `q` is not blank."""
    return bool(request.args.get("q", "").strip())


def rate_limit(
    limit: Limit,
    by: Callable[[], str] = by_client,
    *,
    when: Callable[[], bool] | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Limit the rate of requests to a view. Above the limit, return 429 with `Retry-After`.

        @app.get("/search")
        @rate_limit(Limit("search", 30, 60), by_account, when=is_search)
        async def search(): ...

    While the database is read-only, requests cannot be counted. GET and HEAD requests are then
    served without a limit, and all others get a 503.

    Args:
        limit: the rate limit.
        by: returns the key to count by, such as `by_client` or `by_account`.
        when: tells whether to count a request. None to count all requests. Declare with
            `no_rate_limit` why the others need no limit.
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
