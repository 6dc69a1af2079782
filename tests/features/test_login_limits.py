"""Rate limits of login attempts, which do not lock out the owner."""

from collections import Counter

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import text

from app.user import views
from quart_upsun.security.limits import Limit
from tests.features.factories import DEVICE_COOKIE, Person, cookies_of, new_client


async def test_rate_limits_store_no_usernames_or_addresses(app: Quart, client: Client) -> None:
    ada = await Person().register(app)
    await client.post("/login/", form=ada.login | {"password": "wrong password"})
    async with app.extensions["quart_upsun"].database.read() as session:
        rows = (await session.execute(text("SELECT rate_limits::text FROM rate_limits"))).all()
    assert rows
    assert ada.username not in str(rows)


async def test_too_many_logins_return_429_with_retry_after(
    app: Quart, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(views.LOGIN_LIMIT.count):
        await client.post("/login/", form={})
    response = await client.post("/login/", form={})
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert "Too many requests" in await response.get_data(as_text=True)


async def guess(
    client: Client, person: Person, address: str = "198.51.100.1", device: str = ""
) -> int:
    headers = {"Remote-Addr": address}
    if device:
        headers["Cookie"] = f"{DEVICE_COOKIE}={device}"
    form = person.login | {"password": "wrong password"}
    response = await client.post("/login/", form=form, headers=headers, scope_base=at(address))
    return response.status_code


def at(address: str) -> dict[str, object]:
    return {"client": (address, 0)}


@pytest.fixture
def no_client_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the limit per client, so that the limits per account apply."""
    count_request = Limit.count_request

    async def count_other_limits(self: Limit, subject: str) -> int:
        return 0 if self.name == views.LOGIN_LIMIT.name else await count_request(self, subject)

    monkeypatch.setattr(Limit, "count_request", count_other_limits)


@pytest.mark.usefixtures("no_client_limit")
async def test_login_limit_per_account_does_not_lock_out_owner(app: Quart) -> None:
    ada = await Person().register(app)
    own = new_client(app)
    await ada.log_in(own)
    await own.post("/logout/")
    count = views.CLIENT_LOGIN_LIMIT.count

    stranger = new_client(app)
    statuses = [await guess(stranger, ada) for _ in range(count + 2)]
    assert statuses == [200] * count + [429] * 2
    response = await stranger.post("/login/", form=ada.login, scope_base=at("198.51.100.1"))
    assert response.status_code == 429, "otherwise, the limit would reveal the correct password"
    assert 1 <= int(response.headers["Retry-After"]) <= 30
    assert "Too many login attempts for this account" in await response.get_data(as_text=True)
    await ada.log_in(new_client(app))  # from elsewhere

    device = cookies_of(own)[DEVICE_COOKIE]
    # A device cookie has its own limit for its account, and none for other accounts.
    bob = await Person().register(app)
    for person in (bob, ada):
        codes = [
            await guess(new_client(app), person, "203.0.113.9", device=device)
            for _ in range(count + 1)
        ]
        assert codes == [200] * count + [429]


@pytest.mark.usefixtures("no_client_limit")
async def test_login_limit_across_clients_does_not_lock_out_owner(app: Quart) -> None:
    ada = await Person().register(app)
    own = new_client(app)
    await ada.log_in(own)
    await own.post("/logout/")
    addresses = [f"203.0.113.{n}" for n in range(views.ACCOUNT_LOGIN_LIMIT.count + 5)]
    statuses = [await guess(new_client(app), ada, address) for address in addresses]
    assert Counter(statuses)[429] >= 4
    response = await new_client(app).post("/login/", form=ada.login)
    assert response.status_code == 429
    await ada.log_in(own)  # from a known device


@pytest.mark.usefixtures("no_client_limit")
async def test_login_limit_applies_to_unknown_usernames(app: Quart) -> None:
    nobody = Person()
    client = new_client(app)
    statuses = [await guess(client, nobody) for _ in range(views.CLIENT_LOGIN_LIMIT.count + 1)]
    assert statuses == [200] * views.CLIENT_LOGIN_LIMIT.count + [429]


@pytest.mark.usefixtures("no_client_limit")
async def test_successful_login_resets_the_limit(app: Quart) -> None:
    ada = await Person().register(app)
    client = new_client(app)
    for _ in range(2):
        for _ in range(views.CLIENT_LOGIN_LIMIT.count - 1):
            # `log_in` uses the same client address.
            assert await guess(client, ada, "<local>") == 200
        await ada.log_in(client)
        await client.post("/logout/")
        client = new_client(app)
