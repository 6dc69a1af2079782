"""The account page, sessions, the audit trail, and the data export."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from app import create_app
from app.settings import Settings
from app.site import get_site
from app.user import account_page as account
from app.user import accounts, login, sessions, unconfirmed_accounts
from app.user.audit_trail import Event
from app.user.models import Role, User
from quart_upsun.database import Base, load_models
from quart_upsun.jobs.queue import enqueue
from quart_upsun.platform import Environment
from quart_upsun.sanitize.models import Sanitization
from quart_upsun.security import audit
from quart_upsun.security.models import AuditEvent
from quart_upsun.testing import runner_of
from tests.features.factories import LOGIN_COOKIE, Person, cookies_of, invalid_fields, new_client


@pytest.fixture
async def ada(app: Quart, client: Client) -> Person:
    """A user who is logged in with `client`."""
    person = await Person().register(app)
    await person.log_in(client)
    return person


async def text_of(client: Client, path: str = "/account/") -> str:
    response = await client.get(path)
    assert response.status_code == 200
    return await response.get_data(as_text=True)


async def test_change_username(app: Quart, client: Client, ada: Person) -> None:
    bob = await Person().register(app)
    for name in ("x", bob.username.upper()):
        response = await client.post("/account/name/", form={"username": name})
        page = await response.get_data(as_text=True)
        assert invalid_fields(page) == ["username"]
        assert "<title>Error: " in page
    assert (await client.post("/account/name/", form={"username": "Countess"})).status_code == 303
    assert "Logged in as" in await text_of(client)
    assert "Countess" in await text_of(client)
    # Users can change the case of their own name.
    assert (await client.post("/account/name/", form={"username": "COUNTESS"})).status_code == 303


async def test_password_change_ends_other_sessions(app: Quart, client: Client, ada: Person) -> None:
    elsewhere = new_client(app)
    await ada.log_in(elsewhere)
    form = {"current_password": ada.password, "password": "staple battery", "confirm": "staple"}
    for change, field in (
        ({}, "confirm"),
        (
            {"confirm": "staple battery", "current_password": "wrong password"},
            "current_password",
        ),
        ({"confirm": "short", "password": "short"}, "password"),
        ({"confirm": ada.username, "password": ada.username}, "password"),
    ):
        response = await client.post("/account/password/", form=form | change)
        assert invalid_fields(await response.get_data(as_text=True)) == [field]
    form["confirm"] = form["password"]
    assert (await client.post("/account/password/", form=form)).status_code == 303
    assert "logged out everywhere else" in await text_of(client)
    assert (await elsewhere.get("/account/")).status_code == 303
    await Person(ada.username, password="staple battery").log_in(elsewhere)


async def test_log_out_everywhere_ends_all_sessions(
    app: Quart, client: Client, ada: Person
) -> None:
    elsewhere = new_client(app)
    await ada.log_in(elsewhere)
    assert (await client.post("/account/sign-out/")).status_code == 303
    for each in (client, elsewhere):
        assert (await each.get("/account/")).status_code == 303


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/account/name/", {"username": "mallory"}),
        ("/account/email/", {"email": "mallory@evil.example"}),
        ("/account/password/", dict.fromkeys(("password", "confirm"), "mallory's own")),
        ("/account/sign-out/", {}),
        ("/account/delete/", {}),
    ],
)
async def test_request_changes_nothing_after_its_session_ends(
    app: Quart,
    client: Client,
    ada: Person,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    form: dict[str, str],
) -> None:
    """The body of a request may take half a minute, in which the owner ends all sessions."""
    load = login.load_user
    before = await row(app, ada)

    async def load_and_end() -> None:
        await load()
        async with app.extensions["quart_upsun"].database.write() as session:
            await session.execute(text("UPDATE users SET session_version = session_version + 1"))

    hooks = app.before_request_funcs[None]
    monkeypatch.setitem(
        app.before_request_funcs, None, [load_and_end if each is load else each for each in hooks]
    )
    response = await client.post(path, form=form | {"current_password": ada.password})
    assert (response.status_code, response.location) == (303, "/login/")
    assert await row(app, ada) == before


async def row(app: Quart, person: Person) -> tuple[object, ...]:
    columns = (User.username, User.email, User.pending_email, User.password_hash)
    async with app.extensions["quart_upsun"].database.read() as session:
        return tuple((await session.execute(select(*columns).where(User.id == person.id))).one())


async def test_user_does_not_see_ip_address_of_administrator(
    app: Quart, client: Client, ada: Person
) -> None:
    root = await Person().register(app, administrator=True)
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(
            text(
                "INSERT INTO audit_events (kind, user_id, actor_id, client) VALUES"
                " ('all sessions ended', :ada, :root, '192.0.2.99')"
            ),
            {"ada": ada.id, "root": root.id},
        )
    for path in ("/account/", "/account/data.json"):
        page = (await text_of(client, path)).lower()
        assert "all sessions ended" in page
        assert "192.0.2.99" not in page


async def test_password_change_invalidates_stolen_cookie(
    app: Quart, client: Client, ada: Person
) -> None:
    thief = {"Cookie": f"{LOGIN_COOKIE}={cookies_of(client)[LOGIN_COOKIE]}"}
    assert (await new_client(app).get("/account/", headers=thief)).status_code == 200
    form = dict.fromkeys(("password", "confirm"), "staple battery")
    await client.post("/account/password/", form=form | {"current_password": ada.password})
    assert (await new_client(app).get("/account/", headers=thief)).status_code == 303


async def test_data_export_is_a_json_file(client: Client, ada: Person) -> None:
    response = await client.get("/account/data.json")
    assert response.headers["Content-Disposition"].startswith("attachment")
    data = json.loads(await response.get_data())
    assert data["username"] == ada.username
    assert data["email"] == ada.email
    assert [each["what"] for each in data["events"][:1]] == ["logged in"]
    assert "hash" not in str(data)


async def test_data_export_flags_truncated_events(
    client: Client, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def data() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            await (await client.get("/account/data.json")).get_data()
        )
        return found

    count = len((await data())["events"])
    monkeypatch.setattr(account, "MAX_EVENTS_DOWNLOADED", count)
    whole = await data()
    assert (len(whole["events"]), whole["events_truncated"]) == (count, False)
    monkeypatch.setattr(account, "MAX_EVENTS_DOWNLOADED", count - 1)
    cut = await data()
    assert (cut["events"], cut["events_truncated"]) == (whole["events"][: count - 1], True)
    assert (cut["failed_logins"], cut["failed_logins_truncated"]) == ([], False)
    await client.post("/logout/")
    for _ in range(2):
        await client.post("/login/", form=ada.login | {"password": "wrong password"})
    await ada.log_in(client)
    monkeypatch.setattr(account, "MAX_FAILED_LOGINS_DOWNLOADED", 1)
    cut = await data()
    assert (len(cut["failed_logins"]), cut["failed_logins_truncated"]) == (1, True)


async def test_account_is_deleted(app: Quart, client: Client, ada: Person) -> None:
    response = await client.post("/account/delete/")
    assert response.status_code == 303
    assert (await client.get("/account/")).status_code == 303
    async with app.extensions["quart_upsun"].database.read() as session:
        assert await session.scalar(select(User.id)) is None
        kind = select(AuditEvent.kind).order_by(AuditEvent.id.desc()).limit(1)
        assert await session.scalar(kind) == "account deleted"
    # The username and email address are available again.
    assert (await new_client(app).post("/register/", form=ada.registration)).status_code == 303


async def test_account_page_lists_recent_activity(app: Quart, client: Client, ada: Person) -> None:
    stranger = new_client(app)
    await stranger.post("/login/", form=ada.login | {"password": "wrong password"})
    await (await Person().register(app)).log_in(stranger)
    soup = BeautifulSoup(await text_of(client), "html.parser")
    rows = [
        row.select("td")[1].get_text(strip=True)
        for row in soup.select("table:not(#sessions) tbody tr")
    ]
    assert rows == ["Logged in", "Email address confirmed", "Registered", "Login failed"]


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_events SET kind = 'x'", "DELETE FROM audit_events", "TRUNCATE audit_events"],
)
async def test_audit_trail_is_append_only(app: Quart, ada: Person, statement: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"):
        async with app.extensions["quart_upsun"].database.write() as session:
            await session.execute(text(statement))


async def test_login_expires_unless_remembered(app: Quart, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await Person().register(app)
    short, kept = new_client(app), new_client(app)
    response = await short.post("/login/", form=ada.login)
    assert "Max-Age" not in login_cookie(response.headers.getlist("Set-Cookie"))
    response = await kept.post("/login/", form=ada.login | {"remember": "y"})
    assert f"Max-Age={30 * 24 * 3600}" in login_cookie(response.headers.getlist("Set-Cookie"))
    for client in (short, kept):
        assert (await client.get("/account/")).status_code == 200
    app.config["SESSION_SECONDS"] = -1
    assert (await short.get("/account/")).status_code == 303
    assert (await kept.get("/account/")).status_code == 200


def login_cookie(headers: list[str]) -> str:
    (found,) = [each for each in headers if each.startswith(f"{LOGIN_COOKIE}=")]
    return found


@pytest.mark.parametrize(
    ("auth_id", "status"),
    [
        ("{id}.1.{session}.kept", 200),
        ("{id}.1.{session}", 303),
        ("{id}.1.{session}.kept.more", 303),
        ("{id}.1.{unknown}.kept", 303),
        ("{other}.1.{session}.kept", 303),
        ("{id}.2.{session}.kept", 303),
        ("{id}.1.kept", 303),
        ("a.b.c.kept", 303),
        (".", 303),
    ],
)
async def test_malformed_login_cookie_is_rejected(
    app: Quart, client: Client, auth_id: str, status: int
) -> None:
    """For example, a cookie that an earlier version of the code signed with the same key."""
    ada, bob = await Person().register(app), await Person().register(app)
    await ada.log_in(new_client(app))
    async with app.extensions["quart_upsun"].database.read() as session:
        (row,) = await sessions.list_sessions(session, ada.id)
    content = auth_id.format(id=ada.id, other=bob.id, session=row.id, unknown=row.id + 1)
    token = app.extensions["QUART_AUTH"][0].dump_token(content, app)
    response = await client.get("/account/", headers={"Cookie": f"{LOGIN_COOKIE}={token}"})
    assert response.status_code == status


async def test_remembered_login_survives_password_change(app: Quart, client: Client) -> None:
    ada = await Person().register(app)
    await client.post("/login/", form=ada.login | {"remember": "y"})
    form = dict.fromkeys(("password", "confirm"), "staple battery")
    response = await client.post(
        "/account/password/", form=form | {"current_password": ada.password}
    )
    assert "Max-Age" in login_cookie(response.headers.getlist("Set-Cookie"))


async def test_key_rotation_keeps_sessions(settings: Settings) -> None:
    login = ""
    for key, fallbacks, status in (
        ("old", "", 200),
        ("new", "older, old", 200),
        ("new", "", 303),
    ):
        update = {"secret_key": SecretStr(key), "secret_key_fallbacks": SecretStr(fallbacks)}
        app = create_app(settings.model_copy(update=update))
        async with app.test_app():
            client = new_client(app)
            if not login:
                await (await Person().register(app)).log_in(client)
                login = f"{LOGIN_COOKIE}={cookies_of(client)[LOGIN_COOKIE]}"
            response = await new_client(app).get("/account/", headers={"Cookie": login})
            assert response.status_code == status


async def test_cookies_are_rejected_by_other_environments(settings: Settings) -> None:
    """Previews are cloned from production, with the same data and possibly the same key."""
    production, preview = (
        settings.model_copy(
            update={"platform": environment(kind), "secret_key": SecretStr("k" * 9)}
        )
        for kind in ("production", "development")
    )
    cookies: dict[str, str] = {}
    for here, prefix in ((production, ""), (preview, "preview-")):
        name = f"__Host-{Settings.name}-{prefix}login"
        app = create_app(here)
        async with app.test_app():
            if not cookies:
                ada = await Person().register(app)
                async with app.extensions["quart_upsun"].database.write() as session:
                    # Instead of `quart sanitize`, which would also end the session.
                    sanitized = {"environment": "development", "finished_at": datetime.now(UTC)}
                    await session.execute(insert(Sanitization).values(sanitized))
            response = await new_client(app).post(
                "/login/", form=ada.login, headers={"X-Forwarded-Proto": "https"}
            )
            sent = response.headers.getlist("Set-Cookie")
            cookies[name] = next(each for each in sent if each.startswith(f"{name}=")).split(";")[0]
    for here in (production, preview):
        app = create_app(here)
        async with app.test_app():
            opened = []
            for cookie in cookies.values():
                value = cookie.partition("=")[2]
                both = "; ".join(f"{name}={value}" for name in cookies)  # under both names
                headers = {"Cookie": both, "X-Forwarded-Proto": "https"}
                response = await new_client(app).get("/account/", headers=headers)
                opened.append(response.status_code == 200)
        assert opened == [here is production, here is preview]


def environment(kind: str) -> Environment:
    return Environment(
        name=kind,
        type=kind,
        release="1f3a",
        branch="main",
        origin="https://www.example.com",
        hosts=frozenset(),
        smtp_host="",
    )


def test_every_table_with_user_data_is_exported_or_declared(app: Quart) -> None:
    load_models("app")
    covered = {table for part in get_site(app).personal_data for table in part.tables}
    covered |= {"users"} | get_site(app).tables_not_exported.keys()
    of_users = {
        table.name
        for table in Base.metadata.tables.values()
        if "user_id" in table.columns
        or any(key.column.table.name == "users" for key in table.foreign_keys)
    }
    # And tables that refer to those.
    of_users |= {
        table.name
        for table in Base.metadata.tables.values()
        if any(key.column.table.name in of_users for key in table.foreign_keys)
    }
    assert of_users - covered == set(), (
        "Add a PersonalDataSection for these tables to `get_site(app).personal_data`, or the reason"
        " not to export them to `tables_not_exported`. See docs/adding-a-feature.md#1-the-table."
    )
    assert covered - of_users == {"users"}


async def test_members_page_lists_confirmed_active_users_only(
    app: Quart, client: Client, ada: Person
) -> None:
    unconfirmed = await Person().register(app, confirmed=False)
    gone = await Person().register(app)
    async with app.extensions["quart_upsun"].database.write() as session:
        await accounts.deactivate_user(session, gone.id)
    page = await text_of(client, "/users/")
    assert ada.username in page
    assert unconfirmed.username not in page
    assert gone.username not in page


async def test_cleanup_deletes_unconfirmed_unused_accounts(app: Quart) -> None:
    database = app.extensions["quart_upsun"].database
    people = {
        name: await Person(name).register(app, confirmed=name == "confirmed")
        for name in ("abandoned", "confirmed", "recent", "active", "root")
    }
    async with database.write() as session:
        old = update(User).values(created_at=func.now() - timedelta(days=31))
        await session.execute(old.where(User.username != "recent"))
        root = update(User).where(User.username == "root").values(role=Role.ADMINISTRATOR)
        await session.execute(root)
        await audit.record(session, Event.LOGGED_IN, people["active"].id)
        await enqueue(session, unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS.task)
    await runner_of(app, unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS.task).run_due()
    async with database.read() as session:
        left = set(await session.scalars(select(User.username)))
        events = await audit.list_events(session, user_id=people["abandoned"].id, limit=1)
    assert left == people.keys() - {"abandoned"}
    assert events[0].kind == Event.DELETED
