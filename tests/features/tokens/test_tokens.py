"""The access tokens page: create, list and revoke tokens."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlencode

import pytest
from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select, update

from app.user import accounts, emails
from app.user.audit_trail import Event
from app.user.tokens import access_tokens as tokens
from app.user.tokens.models import AccessToken
from quart_upsun.api.scopes import Scope
from quart_upsun.security.models import AuditEvent
from quart_upsun.testing.databases import set_read_only, writable_again
from quart_upsun.testing.things import bearer
from tests.features.factories import Person, new_client
from tests.features.tokens.factories import make_token

PAGE = "/account/tokens/"
needs_admin = pytest.mark.skipif(
    find_spec("app.admin") is None, reason="the administration was removed"
)
FORM: dict[str, Any] = {"name": "My laptop", "scopes": ["things:read", "me:read"], "days": "30"}


@pytest.fixture
async def client(client: Client, ada: Person) -> Client:
    """A client that is logged in as Ada."""
    await ada.log_in(client)
    return client


async def submit_or_get(client: Client, **form: Any) -> tuple[int, BeautifulSoup]:
    sent = {
        "data": urlencode(form, doseq=True),
        "headers": {"Content-Type": "application/x-www-form-urlencoded"},
    }
    response = await (client.post(PAGE, **sent) if form else client.get(PAGE))
    assert response.headers["Cache-Control"] == "private, no-store"
    return response.status_code, BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def stored_tokens(app: Quart) -> list[AccessToken]:
    async with app.extensions["quart_upsun"].database.read() as session:
        return list((await session.scalars(select(AccessToken).order_by(AccessToken.id))).all())


async def count_events(app: Quart, *kinds: Event) -> int:
    async with app.extensions["quart_upsun"].database.read() as session:
        return len(
            (await session.scalars(select(AuditEvent).where(AuditEvent.kind.in_(kinds)))).all()
        )


async def test_new_token_is_shown_once(app: Quart, client: Client, ada: Person) -> None:
    status, soup = await submit_or_get(client, **FORM)
    field = soup.select_one("input#token")
    assert (status, field is not None) == (200, True)
    assert field is not None
    token = str(field["value"])
    stranger = new_client(app)
    assert (await stranger.get("/api/v1/me", headers=bearer(token))).status_code == 200
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 200
    response = await stranger.post("/api/v1/things", json={"name": "a"}, headers=bearer(token))
    assert response.status_code == 403
    _, soup = await submit_or_get(client)
    assert soup.select_one("input#token") is None
    assert token not in str(soup)
    row = soup.select_one("#tokens tbody tr")
    assert row is not None
    for text in ("My laptop", "me:read", "things:read", f"{datetime.now(UTC):%d %b %Y}"):
        assert text in row.get_text()
    (found,) = await stored_tokens(app)
    assert found.digest == tokens.hash_token(token)
    assert timedelta(days=29) < found.expires_at - datetime.now(UTC) <= timedelta(days=30)
    assert await count_events(app, Event.TOKEN_CREATED) == 1


async def test_form_offers_the_scopes_that_views_require(client: Client) -> None:
    _, soup = await submit_or_get(client)
    boxes = soup.select("#tokenForm input[type=checkbox]")
    offered = [str(box["value"]) for box in boxes]
    assert {"me:read", "things:read", "things:write"} <= set(offered)
    assert offered == sorted(set(offered))
    assert not soup.select("#tokenForm input[checked]")
    days = [str(each["value"]) for each in soup.select("#days option")]
    assert days == ["7", "30", "90", "365"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": " "},
        {"name": "x" * 81},
        {"scopes": []},
        {"scopes": ["everything"]},
        {"days": "36500"},
        {"days": "x"},
    ],
)
async def test_rejects_invalid_token_form(
    app: Quart, client: Client, change: dict[str, Any]
) -> None:
    _, soup = await submit_or_get(client, **(FORM | change))
    assert "Error" in soup.title.text if soup.title else False
    assert soup.select(".invalid-feedback")
    assert await stored_tokens(app) == []


async def test_token_names_are_escaped(client: Client) -> None:
    _, soup = await submit_or_get(client, **(FORM | {"name": "<script>alert(1)</script>"}))
    assert soup.select_one("#tokens script") is None
    assert "<script>alert(1)</script>" in soup.select_one("#tokens").get_text()  # type: ignore[union-attr]


async def test_users_cannot_exceed_the_token_limit(app: Quart, client: Client, ada: Person) -> None:
    for _ in range(18):
        await make_token(app, ada)
    browsers = [new_client(app) for _ in range(4)]
    for browser in browsers:
        await ada.log_in(browser)
    await asyncio.gather(*(submit_or_get(browser, **FORM) for browser in browsers))
    assert len(await stored_tokens(app)) == tokens.MAX_TOKENS
    _, soup = await submit_or_get(client, **FORM)
    assert "20 access tokens" in soup.get_text()
    assert len(await stored_tokens(app)) == tokens.MAX_TOKENS


async def test_revoked_session_cannot_create_tokens(app: Quart, ada: Person) -> None:
    """Otherwise a stolen session could be extended to a year."""
    database = app.extensions["quart_upsun"].database
    async with database.write() as session:
        user = await accounts.get_user(session, ada.id)
        assert user is not None
        session.expunge(user)
        await accounts.end_sessions(session, ada.id, actor_id=ada.id)
    with pytest.raises(accounts.SessionEndedError):
        async with database.write() as session:
            await tokens.create_token(session, user, name="a", scopes=["me:read"], days=7)
    assert await stored_tokens(app) == []


async def test_revoked_token_is_rejected_immediately(
    app: Quart, client: Client, token: str
) -> None:
    (found,) = await stored_tokens(app)
    response = await client.post(f"{PAGE}{found.id}/delete/")
    assert (response.status_code, response.location) == (303, PAGE)
    stranger = new_client(app)
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 401
    assert (await client.post(f"{PAGE}{found.id}/delete/")).status_code == 404
    assert (await client.post(f"{PAGE}{10**30}/delete/")).status_code == 404
    assert await count_events(app, Event.TOKEN_DELETED) == 1


async def test_tokens_of_other_users_cannot_be_seen_or_revoked(
    app: Quart, client: Client, token: str
) -> None:
    (found,) = await stored_tokens(app)
    grace, browser = await Person("grace").register(app), new_client(app)
    await grace.log_in(browser)
    _, soup = await submit_or_get(browser)
    assert "a test" not in soup.get_text()
    assert (await browser.post(f"{PAGE}{found.id}/delete/")).status_code == 404
    assert len(await stored_tokens(app)) == 1


async def test_expired_token_is_marked_as_expired(app: Quart, client: Client, token: str) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(update(AccessToken).values(expires_at=datetime.now(UTC)))
    _, soup = await submit_or_get(client)
    assert "Expired" in soup.get_text()


async def test_sign_out_everywhere_revokes_tokens_unless_kept(
    app: Quart, client: Client, ada: Person, token: str
) -> None:
    stranger = new_client(app)
    form = {"tokens": "keep"}
    assert (await client.post("/account/sign-out/", form=form)).status_code == 303
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 200
    await ada.log_in(client)
    assert (await client.post("/account/sign-out/")).status_code == 303
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 401


@needs_admin
async def test_administrator_can_revoke_sessions_and_tokens(
    app: Quart, client: Client, ada: Person, token: str
) -> None:
    """For example for a compromised account."""
    root = await Person().register(app, administrator=True)
    admin = new_client(app)
    await root.log_in(admin)
    response = await admin.post(f"/admin/users/{ada.id}/end-sessions/")
    assert response.status_code == 303
    assert (await new_client(app).get("/api/v1/things", headers=bearer(token))).status_code == 401


@needs_admin
async def test_a_token_stays_revoked_when_its_user_is_reactivated(
    app: Quart, client: Client, ada: Person, token: str
) -> None:
    root = await Person().register(app, administrator=True)
    admin = new_client(app)
    await root.log_in(admin)
    for action in ("deactivate", "reactivate"):
        response = await admin.post(f"/admin/users/{ada.id}/{action}/")
        assert response.status_code == 303
    assert (await new_client(app).get("/api/v1/things", headers=bearer(token))).status_code == 401


async def test_password_change_keeps_tokens_and_reset_revokes_them(
    app: Quart, client: Client, ada: Person, token: str
) -> None:
    stranger = new_client(app)
    form = {
        "current_password": ada.password,
        "password": "a new one 123",
        "confirm": "a new one 123",
    }
    assert (await client.post("/account/password/", form=form)).status_code == 303
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 200
    async with app.extensions["quart_upsun"].database.read() as session:
        user = await accounts.get_user(session, ada.id)
    assert user is not None
    async with app.app_context():
        path = f"/reset/{emails.create_reset_token(user)}/"
    form = {"password": "another one 123", "confirm": "another one 123"}
    assert (await stranger.post(path, form=form)).status_code == 303
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 401
    assert await count_events(app, Event.TOKEN_DELETED) == 1


async def test_account_page_links_to_tokens(client: Client) -> None:
    text = await (await client.get("/account/")).get_data(as_text=True)
    assert f'href="{PAGE}"' in text


async def test_personal_data_export_omits_token_secrets(
    app: Quart, client: Client, ada: Person
) -> None:
    token = await make_token(app, ada)
    await ada.log_in(client)
    data = json.loads(await (await client.get("/account/data.json")).get_data())
    assert "access token created" in [each["what"] for each in data["events"]]
    (known,) = data["access_tokens"]
    assert (known["name"], known["last_used_at"]) == ("a test", None)
    assert token not in str(data)


async def test_token_works_on_a_read_only_database(
    app: Quart, ada: Person, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first use cannot be recorded then."""
    monkeypatch.setattr("quart_upsun.database.session.READ_ONLY_INTERVAL_SECONDS", 0.0)
    key = {"X-API-Key": await make_token(app, ada, Scope("me:read", "See your account"))}
    await set_read_only(database_url, "on")
    response = await new_client(app).get("/api/v1/me", headers=key)
    await writable_again(database_url)
    assert response.status_code == 200
