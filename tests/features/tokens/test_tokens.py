"""The page on which tokens are made, shown once, listed and deleted."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
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
from quart_upsun.tests.api.things import bearer
from tests.features.factories import Person, new_client
from tests.features.tokens.factories import make_token

PAGE = "/account/tokens/"
FORM: dict[str, Any] = {"name": "My laptop", "scopes": ["things:read", "me:read"], "days": "30"}


@pytest.fixture
async def client(client: Client, ada: Person) -> Client:
    """Ada's browser."""
    await ada.log_in(client)
    return client


async def page(client: Client, **form: Any) -> tuple[int, BeautifulSoup]:
    sent = {
        "data": urlencode(form, doseq=True),
        "headers": {"Content-Type": "application/x-www-form-urlencoded"},
    }
    response = await (client.post(PAGE, **sent) if form else client.get(PAGE))
    assert response.headers["Cache-Control"] == "private, no-store"
    return response.status_code, BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def kept(app: Quart) -> list[AccessToken]:
    async with app.extensions["quart_upsun"].database.read() as session:
        return list((await session.scalars(select(AccessToken).order_by(AccessToken.id))).all())


async def events(app: Quart, *kinds: Event) -> int:
    async with app.extensions["quart_upsun"].database.read() as session:
        return len(
            (await session.scalars(select(AuditEvent).where(AuditEvent.kind.in_(kinds)))).all()
        )


async def test_a_token_is_made_and_shown_once(app: Quart, client: Client, ada: Person) -> None:
    status, soup = await page(client, **FORM)
    field = soup.select_one("input#token")
    assert (status, field is not None) == (200, True)
    assert field is not None
    token = str(field["value"])
    stranger = new_client(app)
    assert (await stranger.get("/api/v1/me", headers=bearer(token))).status_code == 200
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 200
    response = await stranger.post("/api/v1/things", json={"name": "a"}, headers=bearer(token))
    assert response.status_code == 403
    _, soup = await page(client)
    assert soup.select_one("input#token") is None
    assert token not in str(soup)
    row = soup.select_one("#tokens tbody tr")
    assert row is not None
    for text in ("My laptop", "me:read", "things:read", f"{datetime.now(UTC):%d %b %Y}"):
        assert text in row.get_text()
    (found,) = await kept(app)
    assert found.digest == tokens.hash_token(token)
    assert timedelta(days=29) < found.expires_at - datetime.now(UTC) <= timedelta(days=30)
    assert await events(app, Event.TOKEN_CREATED) == 1


async def test_the_form_offers_what_views_ask_for(client: Client) -> None:
    _, soup = await page(client)
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
async def test_what_the_form_refuses(app: Quart, client: Client, change: dict[str, Any]) -> None:
    _, soup = await page(client, **(FORM | change))
    assert "Error" in soup.title.text if soup.title else False
    assert soup.select(".invalid-feedback")
    assert await kept(app) == []


async def test_names_are_shown_as_they_are(client: Client) -> None:
    _, soup = await page(client, **(FORM | {"name": "<script>alert(1)</script>"}))
    assert soup.select_one("#tokens script") is None
    assert "<script>alert(1)</script>" in soup.select_one("#tokens").get_text()  # type: ignore[union-attr]


async def test_nobody_has_more_than_twenty(app: Quart, client: Client, ada: Person) -> None:
    for _ in range(18):
        await make_token(app, ada)
    browsers = [new_client(app) for _ in range(4)]
    for browser in browsers:
        await ada.log_in(browser)
    await asyncio.gather(*(page(browser, **FORM) for browser in browsers))
    assert len(await kept(app)) == tokens.MAX_TOKENS
    _, soup = await page(client, **FORM)
    assert "20 access tokens" in soup.get_text()
    assert len(await kept(app)) == tokens.MAX_TOKENS


async def test_a_session_that_was_ended_makes_none(app: Quart, ada: Person) -> None:
    """Or a thief would turn what is left of a session into a year."""
    database = app.extensions["quart_upsun"].database
    async with database.write() as session:
        user = await accounts.get_user(session, ada.id)
        assert user is not None
        session.expunge(user)
        await accounts.end_sessions(session, ada.id, actor_id=ada.id)
    with pytest.raises(accounts.SessionEndedError):
        async with database.write() as session:
            await tokens.create_token(session, user, name="a", scopes=["me:read"], days=7)
    assert await kept(app) == []


async def test_a_deleted_token_is_refused_at_once(app: Quart, client: Client, token: str) -> None:
    (found,) = await kept(app)
    response = await client.post(f"{PAGE}{found.id}/delete/")
    assert (response.status_code, response.location) == (303, PAGE)
    stranger = new_client(app)
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 401
    assert (await client.post(f"{PAGE}{found.id}/delete/")).status_code == 404
    assert (await client.post(f"{PAGE}{10**30}/delete/")).status_code == 404
    assert await events(app, Event.TOKEN_DELETED) == 1


async def test_others_tokens_are_not_seen_and_not_deleted(
    app: Quart, client: Client, token: str
) -> None:
    (found,) = await kept(app)
    grace, browser = await Person("grace").register(app), new_client(app)
    await grace.log_in(browser)
    _, soup = await page(browser)
    assert "a test" not in soup.get_text()
    assert (await browser.post(f"{PAGE}{found.id}/delete/")).status_code == 404
    assert len(await kept(app)) == 1


async def test_one_that_is_over_is_shown_as_such(app: Quart, client: Client, token: str) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(update(AccessToken).values(expires_at=datetime.now(UTC)))
    _, soup = await page(client)
    assert "Expired" in soup.get_text()


async def test_signing_out_everywhere_revokes_tokens_unless_they_are_to_be_kept(
    app: Quart, client: Client, ada: Person, token: str
) -> None:
    stranger = new_client(app)
    form = {"tokens": "keep"}
    assert (await client.post("/account/sign-out/", form=form)).status_code == 303
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 200
    await ada.log_in(client)
    assert (await client.post("/account/sign-out/")).status_code == 303
    assert (await stranger.get("/api/v1/things", headers=bearer(token))).status_code == 401


async def test_an_administrator_ends_sessions_and_tokens(
    app: Quart, client: Client, ada: Person, token: str
) -> None:
    """Of an account that was taken over, for instance."""
    root = await Person().register(app, administrator=True)
    admin = new_client(app)
    await root.log_in(admin)
    response = await admin.post(f"/admin/users/{ada.id}/end-sessions/")
    assert response.status_code == 303
    assert (await new_client(app).get("/api/v1/things", headers=bearer(token))).status_code == 401


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


async def test_a_new_password_leaves_tokens_and_a_reset_ends_them(
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
    assert await events(app, Event.TOKEN_DELETED) == 1


async def test_the_account_leads_there(client: Client) -> None:
    text = await (await client.get("/account/")).get_data(as_text=True)
    assert f'href="{PAGE}"' in text


async def test_tokens_are_downloaded_without_their_secret(
    app: Quart, client: Client, ada: Person
) -> None:
    token = await make_token(app, ada)
    await ada.log_in(client)
    data = json.loads(await (await client.get("/account/data.json")).get_data())
    assert "access token created" in [each["what"] for each in data["events"]]
    (known,) = data["access_tokens"]
    assert (known["name"], known["last_used_at"]) == ("a test", None)
    assert token not in str(data)


async def test_a_token_works_while_the_database_is_read_only(
    app: Quart, ada: Person, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first use cannot be recorded then."""
    monkeypatch.setattr("quart_upsun.database.session.READ_ONLY_INTERVAL_SECONDS", 0.0)
    key = {"X-API-Key": await make_token(app, ada, Scope("me:read", "See your account"))}
    await set_read_only(database_url, "on")
    response = await new_client(app).get("/api/v1/me", headers=key)
    await writable_again(database_url)
    assert response.status_code == 200
