"""Authentication with access tokens, and the queries it needs."""

import logging
import re
from datetime import UTC, datetime, timedelta

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select, update

from app.api.me import READ as ME
from app.user import accounts
from app.user.models import User
from app.user.tokens import access_tokens as tokens
from app.user.tokens.models import AccessToken
from quart_upsun.testing.statements import Statements
from quart_upsun.testing.things import bearer
from tests.features.factories import Person
from tests.features.tokens.factories import make_token

THINGS = "/api/v1/things"


async def change_token(app: Quart, **values: object) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(update(AccessToken).values(**values))


async def last_used(app: Quart) -> datetime | None:
    async with app.extensions["quart_upsun"].database.read() as session:
        found: datetime | None = await session.scalar(select(AccessToken.last_used_at))
        return found


@pytest.mark.parametrize("name", ["Authorization", "X-API-Key"])
async def test_accepts_token_in_either_header(
    app: Quart, client: Client, ada: Person, name: str
) -> None:
    token = await make_token(app, ada, ME)
    value = f"bearer {token}" if name == "Authorization" else token
    response = await client.get("/api/v1/me", headers={name: value})
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "private, no-store"
    me = await response.get_json()
    assert datetime.fromisoformat(me.pop("created_at")).tzinfo is not None
    assert me == {"id": ada.id, "username": "ada", "email": ada.email, "via": "token"}


@pytest.mark.parametrize("scheme", ["Bearer", "Bearer ", "bearer x", "Bearer \xe9", "Bearer qu_"])
async def test_rejects_malformed_token_without_a_query(
    app: Quart, client: Client, ada: Person, scheme: str
) -> None:
    await ada.log_in(client)
    statements = Statements(app)
    response = await client.get("/api/v1/me", headers={"Authorization": scheme})
    assert (response.status_code, statements.seen) == (401, [])
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


async def test_rejects_unknown_token(client: Client, token: str) -> None:
    assert (await client.get(THINGS, headers=bearer(tokens.generate_token()))).status_code == 401
    assert (await client.get(THINGS, headers=bearer(token))).status_code == 200


async def test_rejects_expired_token(app: Quart, client: Client, token: str) -> None:
    await change_token(app, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert (await client.get(THINGS, headers=bearer(token))).status_code == 401


async def test_rejects_token_of_deactivated_or_deleted_user(
    app: Quart, client: Client, ada: Person, token: str
) -> None:
    database = app.extensions["quart_upsun"].database
    async with database.write() as session:
        await accounts.deactivate_user(session, ada.id)
    assert (await client.get(THINGS, headers=bearer(token))).status_code == 401
    async with database.write() as session:
        await accounts.reactivate_user(session, ada.id)
    assert (await client.get(THINGS, headers=bearer(token))).status_code == 200
    async with database.write() as session:
        user = await accounts.get_user(session, ada.id)
        assert isinstance(user, User)
        await accounts.delete_user(session, user)
    assert (await client.get(THINGS, headers=bearer(token))).status_code == 401


async def test_rejects_two_different_tokens(client: Client, token: str) -> None:
    headers = bearer(token) | {"X-API-Key": token}
    assert (await client.get(THINGS, headers=headers)).status_code == 200
    headers["X-API-Key"] = tokens.generate_token()
    assert (await client.get(THINGS, headers=headers)).status_code == 400


async def test_token_takes_precedence_over_cookie(app: Quart, client: Client, ada: Person) -> None:
    """Neither to authenticate a request with an invalid token, nor to choose the user."""
    await ada.log_in(client)
    other = await Person("grace").register(app)
    token = await make_token(app, other, ME)
    await change_token(app, last_used_at=datetime.now(UTC))
    assert (
        await client.get("/api/v1/me", headers=bearer(tokens.generate_token()))
    ).status_code == 401
    response = await client.get("/api/v1/me", headers=bearer(token))
    assert (await response.get_json())["username"] == "grace"
    # Pages use the cookie and ignore the header.
    response = await client.get("/account/", headers=bearer(token))
    assert 'value="ada"' in await response.get_data(as_text=True)


async def test_token_authentication_needs_one_query(
    app: Quart, client: Client, ada: Person, token: str
) -> None:
    await ada.log_in(client)
    assert (await client.get(THINGS, headers=bearer(token))).status_code == 200
    statements = Statements(app)
    assert (await client.get(THINGS, headers=bearer(token))).status_code == 200
    assert len(statements.seen) == 1
    assert statements.seen[0].startswith("SELECT")


async def test_last_use_is_recorded_once_a_minute(app: Quart, client: Client, token: str) -> None:
    assert await last_used(app) is None
    await client.get(THINGS, headers=bearer(token))
    first = await last_used(app)
    assert first is not None
    await client.get(THINGS, headers=bearer(token))
    assert await last_used(app) == first
    await change_token(app, last_used_at=first - timedelta(seconds=61))
    await client.get(THINGS, headers=bearer(token))
    again = await last_used(app)
    assert again is not None
    assert again >= first


async def test_token_is_neither_stored_nor_logged(
    app: Quart, client: Client, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    response = await client.get(f"{THINGS}/500", headers=bearer(token) | {"X-API-Key": token})
    assert response.status_code == 500
    assert "ValueError" in caplog.text
    secret = token.removeprefix(tokens.PREFIX)
    assert secret[:12] not in caplog.text
    async with app.extensions["quart_upsun"].database.read() as session:
        row = (await session.scalars(select(AccessToken))).one()
    assert secret[:12] not in str(vars(row))


def test_token_format_has_a_prefix_and_checksum() -> None:
    token = tokens.generate_token()
    assert re.fullmatch(r"qu_[A-Za-z0-9_-]{49}", token)
    assert tokens.is_well_formed(token)
    for wrong in ("", "qu_", token[:-1], token + "A", token[:10] + "!" + token[11:], token + "\n"):
        assert not tokens.is_well_formed(wrong)
    swapped = token[:5] + ("A" if token[5] != "A" else "B") + token[6:]
    assert not tokens.is_well_formed(swapped)
