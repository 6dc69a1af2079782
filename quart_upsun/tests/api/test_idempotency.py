"""Idempotent requests with `Idempotency-Key`."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from quart_upsun.api import idempotency
from quart_upsun.api.models import IdempotentAnswer
from quart_upsun.database import Database
from quart_upsun.jobs.queue import JobContext
from quart_upsun.testing.things import bearer, made
from quart_upsun.tests.conftest import add_user

THINGS = "/api/v1/things"


@pytest.fixture
def headers(token: str) -> dict[str, str]:
    return bearer(token) | {"Idempotency-Key": "a-key"}


async def count_stored_responses(app: Quart) -> int:
    async with app.extensions["quart_upsun"].database.read() as session:
        return int(await session.scalar(select(func.count(IdempotentAnswer.key))) or 0)


async def test_a_retry_returns_the_first_response(
    app: Quart, client: Client, headers: dict[str, str]
) -> None:
    first = await client.post(THINGS, json={"name": "a"}, headers=headers)
    second = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert await second.get_data() == await first.get_data()
    for name in ("Location", "ETag", "Content-Type", "Cache-Control"):
        assert second.headers[name] == first.headers[name]
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert await made(app) == 1


async def test_requests_without_a_key_are_not_deduplicated(
    app: Quart, client: Client, token: str
) -> None:
    for _ in range(2):
        response = await client.post(THINGS, json={"name": "a"}, headers=bearer(token))
        assert response.status_code == 201
    assert (await made(app), await count_stored_responses(app)) == (2, 0)


async def test_a_key_cannot_be_reused_for_a_different_request(
    app: Quart, client: Client, headers: dict[str, str]
) -> None:
    await client.post(THINGS, json={"name": "a"}, headers=headers)
    for path, body in ((THINGS, {"name": "b"}), (f"{THINGS}?x=1", {"name": "a"})):
        response = await client.post(path, json=body, headers=headers)
        assert response.status_code == 422
        assert "Idempotency-Key" in (await response.get_json(force=True))["detail"]
    assert await made(app) == 1


async def test_keys_are_scoped_to_the_user(
    app: Quart, client: Client, database: Database, headers: dict[str, str]
) -> None:
    await client.post(THINGS, json={"name": "a"}, headers=headers)
    grace = await add_user(database, "grace")
    headers |= bearer(f"token-{grace}")
    response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert (response.status_code, await made(app)) == (201, 2)
    assert "Idempotency-Replayed" not in response.headers


async def test_concurrent_requests_with_one_key_run_once(
    app: Quart, headers: dict[str, str]
) -> None:
    clients = [app.test_client() for _ in range(4)]
    responses = await asyncio.gather(
        *(each.post(THINGS, json={"name": "slow"}, headers=headers) for each in clients)
    )
    assert [response.status_code for response in responses] == [201] * 4
    assert sum("Idempotency-Replayed" in response.headers for response in responses) == 3
    assert len({response.headers["Location"] for response in responses}) == 1
    assert await made(app) == 1


@pytest.mark.parametrize(("name", "status"), [("taken", 409), ("crash", 500)])
async def test_a_failed_request_is_rolled_back_and_can_be_retried(
    app: Quart, client: Client, headers: dict[str, str], name: str, status: int
) -> None:
    response = await client.post(THINGS, json={"name": name}, headers=headers)
    assert response.status_code == status
    assert (await made(app), await count_stored_responses(app)) == (0, 0)
    response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert response.status_code == 201


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\xfc", "a\tb"])
async def test_rejects_keys_that_are_not_visible_ascii(
    client: Client, token: str, key: str
) -> None:
    headers = bearer(token) | {"Idempotency-Key": key}
    response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert response.status_code == 400


async def test_accepts_a_key_of_maximum_length(app: Quart, client: Client, token: str) -> None:
    headers = bearer(token) | {"Idempotency-Key": "~" * 255}
    for _ in range(2):
        await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert await made(app) == 1


async def test_returns_409_while_the_first_request_is_in_progress(
    app: Quart, client: Client, user: int, headers: dict[str, str]
) -> None:
    database = app.extensions["quart_upsun"].database
    async with database.write() as session:
        claim = {"user_id": user, "key": headers["Idempotency-Key"], "fingerprint": b""}
        await session.execute(idempotency.CLAIM, claim)
        response = await client.post(THINGS, json={"name": "a"}, headers=headers)
    assert response.status_code == 409
    assert response.headers["Retry-After"] == "1"
    assert await made(app) == 0


async def test_stored_responses_expire_after_a_day(
    app: Quart, client: Client, headers: dict[str, str]
) -> None:
    for number in range(5):
        headers["Idempotency-Key"] = str(number)
        await client.post(THINGS, json={"name": "a"}, headers=headers)
    database = app.extensions["quart_upsun"].database
    async with database.write() as session:
        old = datetime.now(UTC) - timedelta(hours=24, seconds=1)
        await session.execute(
            update(IdempotentAnswer).where(IdempotentAnswer.key != "4").values(created_at=old)
        )
    await idempotency.delete_expired_responses(
        JobContext(id=1, data={}, attempt=1, database=database)
    )
    assert await count_stored_responses(app) == 1
