"""The list of sessions on the account page, and how sessions end."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from bs4 import BeautifulSoup, Tag
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from app.user import accounts, sessions
from app.user.audit_trail import Event
from app.user.models import USER_AGENT_LENGTH, User, UserSession
from quart_upsun.database import Database
from quart_upsun.jobs.queue import enqueue
from quart_upsun.security import audit
from quart_upsun.testing import runner_of
from quart_upsun.testing.databases import set_read_only, writable_again
from tests.features.factories import LOGIN_COOKIE, Person, cookies_of, new_client

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15"
    " (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1"
)
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/142.0.0.0 Safari/537.36"
)


@pytest.fixture
async def phone(app: Quart, ada: Person) -> Client:
    """A second client that Ada is logged in with."""
    client = new_client(app)
    response = await client.post("/login/", form=ada.login, headers={"User-Agent": IPHONE})
    assert response.status_code == 303
    return client


async def listed(client: Client) -> list[list[str]]:
    """Return the text of the cells of the list of sessions."""
    return [
        [cell.get_text(" ", strip=True) for cell in row.select("td")] for row in await rows(client)
    ]


async def rows(client: Client) -> list[Tag]:
    response = await client.get("/account/")
    assert response.status_code == 200
    return BeautifulSoup(await response.get_data(), "html.parser").select("#sessions tbody tr")


async def is_logged_in(client: Client) -> bool:
    return (await client.get("/users/")).status_code == 200


async def kinds(database: Database, person: Person) -> list[str]:
    async with database.read() as session:
        events = await audit.list_events(session, user_id=person.id, limit=20)
    return [event.kind for event in events]


@pytest.mark.parametrize(
    ("user_agent", "words"),
    [
        (FIREFOX, "Firefox on Linux"),
        (IPHONE, "Safari on iPhone"),
        (CHROME, "Chrome on Windows"),
        (f"{CHROME} Edg/142.0.0.0", "Edge on Windows"),
        ("curl/8.5.0", "Unknown browser"),
        ("", "Unknown browser"),
    ],
)
def test_browsers_are_described_in_plain_words(user_agent: str, words: str) -> None:
    assert sessions.describe_browser(user_agent) == words


async def test_account_page_lists_sessions(client: Client, phone: Client) -> None:
    found = [(browser, action) for browser, *_, action in await listed(client)]
    assert found == [("Safari on iPhone", "End session"), ("Unknown browser", "This session")]
    found = [(browser, action) for browser, *_, action in await listed(phone)]
    assert found == [("Safari on iPhone", "This session"), ("Unknown browser", "End session")]


async def test_one_session_is_ended(
    database: Database, client: Client, ada: Person, phone: Client
) -> None:
    form = (await rows(client))[0].select_one("form")
    assert form is not None
    assert (await client.post(str(form["action"]))).status_code == 303
    assert not await is_logged_in(phone)
    assert await is_logged_in(client)
    assert len(await listed(client)) == 1
    assert (await kinds(database, ada))[0] == Event.SESSION_ENDED
    assert (await client.post(str(form["action"]))).status_code == 404


async def test_sessions_of_others_are_not_found(app: Quart, client: Client, phone: Client) -> None:
    bob = new_client(app)
    await (await Person().register(app)).log_in(bob)
    form = (await rows(client))[0].select_one("form")
    assert form is not None
    assert (await bob.post(str(form["action"]))).status_code == 404
    assert await is_logged_in(phone)


async def test_all_other_sessions_are_ended(
    app: Quart, database: Database, client: Client, ada: Person, phone: Client
) -> None:
    bob = new_client(app)
    await (await Person().register(app)).log_in(bob)
    assert (await client.post("/account/sessions/end-others/")).status_code == 303
    assert [await is_logged_in(each) for each in (client, phone, bob)] == [True, False, True]
    assert (await kinds(database, ada))[0] == Event.OTHER_SESSIONS_ENDED


async def test_logout_ends_the_session_on_the_server(
    app: Quart, client: Client, ada: Person
) -> None:
    copy = {"Cookie": f"{LOGIN_COOKIE}={cookies_of(client)[LOGIN_COOKIE]}"}
    assert (await new_client(app).get("/users/", headers=copy)).status_code == 200
    assert (await client.post("/logout/")).status_code == 303
    assert (await new_client(app).get("/users/", headers=copy)).status_code == 303


async def test_another_login_replaces_the_session(app: Quart, client: Client, ada: Person) -> None:
    copy = {"Cookie": f"{LOGIN_COOKIE}={cookies_of(client)[LOGIN_COOKIE]}"}
    await ada.log_in(client)
    assert (await new_client(app).get("/users/", headers=copy)).status_code == 303
    assert len(await listed(client)) == 1


async def test_login_fails_if_all_sessions_end_before_it_is_complete(
    app: Quart, client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password that was just changed must not create a session."""
    ada = await Person().register(app)
    create = sessions.create_session

    async def end_and_create(session, user, **options):  # type: ignore[no-untyped-def]
        async with database.write() as other:
            await other.execute(update(User).values(session_version=User.session_version + 1))
        return await create(session, user, **options)

    monkeypatch.setattr(sessions, "create_session", end_and_create)
    response = await client.post("/login/", form=ada.login)
    assert (response.status_code, response.location) == (303, "/login/")
    assert not await is_logged_in(client)
    assert Event.LOGGED_IN not in await kinds(database, ada)


async def test_user_agent_is_shortened(app: Quart, client: Client) -> None:
    ada = await Person().register(app)
    headers = {"User-Agent": FIREFOX + "x" * 5000}
    assert (await client.post("/login/", form=ada.login, headers=headers)).status_code == 303
    async with app.extensions["quart_upsun"].database.read() as session:
        stored = await session.scalar(select(UserSession.user_agent))
    assert stored == headers["User-Agent"][:USER_AGENT_LENGTH]


async def last_seen(database: Database) -> datetime:
    async with database.read() as session:
        (found,) = await session.scalars(select(UserSession.last_seen_at))
    return found


async def set_last_seen(database: Database, *, minutes: int) -> datetime:
    async with database.write() as session:
        await session.execute(
            update(UserSession).values(last_seen_at=func.now() - timedelta(minutes=minutes))
        )
    return await last_seen(database)


async def test_last_seen_is_updated_every_ten_minutes(
    database: Database, client: Client, ada: Person
) -> None:
    recent = await set_last_seen(database, minutes=9)
    assert await is_logged_in(client)
    assert await last_seen(database) == recent
    await set_last_seen(database, minutes=11)
    assert await is_logged_in(client)
    assert datetime.now(UTC) - await last_seen(database) < timedelta(minutes=1)


async def test_pages_are_served_while_the_database_is_read_only(
    database: Database,
    client: Client,
    ada: Person,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quart_upsun.database.session.READ_ONLY_INTERVAL_SECONDS", 0.0)
    old = await set_last_seen(database, minutes=11)
    await set_read_only(database_url, "on")
    is_served = await is_logged_in(client)
    await writable_again(database_url)
    assert is_served
    assert await last_seen(database) == old


async def test_cleanup_deletes_ended_sessions_only(
    app: Quart, database: Database, client: Client, ada: Person
) -> None:
    bob = await Person().register(app)
    await bob.log_in(new_client(app))
    async with database.write() as session:
        user = await accounts.get_user(session, ada.id)
        assert user is not None
        for lifetime in (timedelta(seconds=-1), timedelta(days=30)):
            await sessions.create_session(
                session,
                user,
                is_persistent=True,
                lifetime=lifetime,
                client=None,
                user_agent=f"{lifetime}",
            )
        await accounts.end_sessions(session, bob.id, actor_id=ada.id)
        await enqueue(session, sessions.DELETE_ENDED_SESSIONS.task)
    await runner_of(app, sessions.DELETE_ENDED_SESSIONS.task).run_due()
    async with database.read() as session:
        left = (await session.scalars(select(UserSession).order_by(UserSession.id))).all()
    assert [(each.user_id, each.user_agent) for each in left] == [
        (ada.id, left[0].user_agent),
        (ada.id, "30 days, 0:00:00"),
    ]
    assert await is_logged_in(client)


async def test_ended_sessions_are_not_listed(
    database: Database, client: Client, ada: Person, phone: Client
) -> None:
    fields = {"current_password": ada.password, "password": "staple battery"}
    response = await client.post("/account/password/", form=fields | {"confirm": "staple battery"})
    assert response.status_code == 303
    assert [cells[-1] for cells in await listed(client)] == ["This session"]


async def test_data_export_has_the_sessions(client: Client, phone: Client) -> None:
    data = json.loads(await (await client.get("/account/data.json")).get_data())
    assert data["sessions"][0]["user_agent"] == IPHONE
    assert all(each["created_at"] and each["last_seen_at"] for each in data["sessions"])
    assert [each["client"] for each in data["sessions"]] == ["<local>", "<local>"]


async def test_deleted_account_has_no_sessions(
    database: Database, client: Client, ada: Person
) -> None:
    assert (await client.post("/account/delete/")).status_code == 303
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(UserSession)) == 0
