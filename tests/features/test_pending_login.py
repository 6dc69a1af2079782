"""Logins that wait for a second factor."""

from collections.abc import Callable
from typing import Any

import pytest
from quart import Quart, abort
from quart.testing import QuartClient as Client
from quart.typing import ResponseTypes
from sqlalchemy.ext.asyncio import AsyncSession

from app.settings import Settings
from app.site import SecondFactor, get_site
from app.user import accounts, pending_login
from app.user.audit_trail import Event
from quart_upsun.database import Database
from quart_upsun.policy import audited, no_store, public
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, rate_limit
from tests.features.factories import LOGIN_COOKIE, Person, cookies_of, new_client

COOKIE = f"{Settings.name}-pending-login"


@pytest.fixture
async def ada(app: Quart) -> Person:
    return await Person().register(app)


@pytest.fixture
def factors(app: Quart, ada: Person) -> None:
    """Two second factors of Ada, which accept a click."""

    async def is_enabled(session: AsyncSession, user_id: int) -> bool:
        return user_id == ada.id

    @no_store
    @public
    @rate_limit(Limit("click", 100, 60))
    @audited(Event.LOGGED_IN)
    async def click() -> ResponseTypes | str:
        pending = await pending_login.get() or abort(410)
        return await pending_login.complete(pending)

    async def other() -> str:
        pending = await pending_login.get() or abort(410)
        return f"{pending.user.username} {[each.name for each in pending.other_factors('other')]}"

    app.add_url_rule("/click/", "click", click, methods=["POST"])
    app.add_url_rule("/other/", "other", other, methods=["GET"])
    get_site(app).second_factors.extend(
        SecondFactor(name, name.capitalize(), name, is_enabled) for name in ("other", "click")
    )


async def kinds(database: Database, person: Person) -> list[str]:
    async with database.read() as session:
        events = await audit.list_events(session, user_id=person.id, limit=20)
    return [event.kind for event in events]


@pytest.mark.usefixtures("factors")
async def test_password_alone_is_not_a_login(
    app: Quart, database: Database, client: Client, ada: Person
) -> None:
    response = await client.post("/login/?next=/invite/", form=ada.login | {"remember": "y"})
    assert (response.status_code, response.location) == (303, "/other/")
    (cookie,) = response.headers.getlist("Set-Cookie")
    assert cookie.startswith(f"{COOKIE}=")
    assert all(each in cookie for each in ("HttpOnly", "SameSite=Lax", "Max-Age=600"))
    assert (await client.get("/users/")).status_code == 303
    assert Event.LOGGED_IN not in await kinds(database, ada)
    page = await (await client.get("/other/")).get_data(as_text=True)
    assert page == f"{ada.username} ['click']"

    response = await client.post("/click/")
    assert (response.status_code, response.location) == (303, "/invite/")
    cookies = " ".join(response.headers.getlist("Set-Cookie"))
    assert f"Max-Age={30 * 24 * 3600}" in cookies
    assert (await client.get("/users/")).status_code == 200
    assert (await kinds(database, ada))[0] == Event.LOGGED_IN
    assert COOKIE not in cookies_of(client)
    assert (await client.post("/click/")).status_code == 410


@pytest.mark.usefixtures("factors")
async def test_pending_login_is_not_accepted_as_a_login(
    app: Quart, client: Client, ada: Person
) -> None:
    await client.post("/login/", form=ada.login)
    stolen = {"Cookie": f"{LOGIN_COOKIE}={cookies_of(client)[COOKIE]}"}
    assert (await new_client(app).get("/users/", headers=stolen)).status_code == 303


@pytest.mark.usefixtures("factors")
@pytest.mark.parametrize("change", [accounts.deactivate_user, accounts.end_sessions])
async def test_pending_login_ends_with_all_sessions(
    database: Database, client: Client, ada: Person, change: Callable[..., Any]
) -> None:
    await client.post("/login/", form=ada.login)
    async with database.write() as session:
        await change(session, ada.id, actor_id=ada.id)
    assert (await client.post("/click/")).status_code == 410


@pytest.mark.usefixtures("factors")
async def test_pending_login_expires(
    client: Client, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post("/login/", form=ada.login)
    monkeypatch.setattr(pending_login, "LIFETIME_SECONDS", -1)
    assert (await client.post("/click/")).status_code == 410


@pytest.mark.usefixtures("factors")
async def test_trusted_browser_and_other_users_need_no_second_factor(
    app: Quart, client: Client, ada: Person
) -> None:
    bob = await Person().register(app)
    response = await new_client(app).post("/login/", form=bob.login)
    assert response.location == "/users/"
    get_site(app).trusts_browser = lambda user: user.id == ada.id
    response = await client.post("/login/", form=ada.login)
    assert response.location == "/users/"


@pytest.mark.usefixtures("factors")
async def test_forged_cookie_is_rejected(app: Quart, ada: Person) -> None:
    for value in ("", "x", f"[{ada.id},1,true,null]"):
        response = await new_client(app).get("/other/", headers={"Cookie": f"{COOKIE}={value}"})
        assert response.status_code == 410
