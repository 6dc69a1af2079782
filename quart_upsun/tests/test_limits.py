"""Rate limits, shared between processes."""

import asyncio
from collections import Counter

import pytest
from quart import Quart
from sqlalchemy import func, select, text

from quart_upsun.security import limits
from quart_upsun.security.limits import Limit
from quart_upsun.security.models import RateLimit
from quart_upsun.tests.sample import create_app
from quart_upsun.tests.sample.settings import Settings

LIMIT = Limit("test", 5, 3600)


async def test_requests_over_the_limit_must_wait(app: Quart) -> None:
    async with app.app_context():
        assert [await LIMIT.count_request("a") for _ in range(5)] == [0] * 5
        wait = await LIMIT.count_request("a")
        assert 700 < wait <= 720
        assert await LIMIT.count_request("b") == 0
        # Rejected requests are not counted, so the wait does not grow.
        assert await LIMIT.count_request("a") <= wait
        async with app.extensions["quart_upsun"].database.write() as session:
            await session.execute(
                text("UPDATE rate_limits SET used_until = used_until - interval '721 seconds'")
            )
        assert await LIMIT.count_request("a") == 0
        assert await LIMIT.count_request("a") > 0
        await LIMIT.reset("a")
        assert await LIMIT.count_request("a") == 0


async def test_processes_share_a_limit(app: Quart, settings: Settings) -> None:
    other = create_app(settings)

    async def take(app: Quart) -> int:
        async with app.app_context():
            return await LIMIT.count_request("a")

    async with other.test_app():
        waits = await asyncio.gather(*(take(each) for each in (app, other) for _ in range(10)))
    assert Counter(wait == 0 for wait in waits) == {True: 5, False: 15}


async def test_rows_are_bounded_and_expire(app: Quart, monkeypatch: pytest.MonkeyPatch) -> None:
    async def rows() -> int:
        async with app.extensions["quart_upsun"].database.read() as session:
            return await session.scalar(select(func.count()).select_from(RateLimit)) or 0

    monkeypatch.setattr(limits, "BUCKETS", 3)
    async with app.app_context():
        for number in range(30):
            await LIMIT.count_request(f"client {number}")
        assert await rows() <= 3
        async with app.extensions["quart_upsun"].database.write() as session:
            await session.execute(text("UPDATE rate_limits SET used_until = now() - interval '1s'"))
        monkeypatch.setattr(limits, "CLEANUP_PROBABILITY", 1)
        await LIMIT.count_request("next client")
        assert await rows() == 1


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("nonsense", "unknown"),
    ],
)
async def test_rate_limit_key_of_a_client(app: Quart, address: str, subject: str) -> None:
    async with app.test_request_context("/", headers={"Remote-Addr": address}):
        assert limits.by_client() == subject
