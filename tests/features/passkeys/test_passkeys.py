"""The passkeys page: add, rename and remove passkeys, and what others learn of it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from app import create_app
from app.settings import Settings
from app.site import get_site
from app.user import accounts
from app.user.audit_trail import Event
from app.user.models import UNUSABLE_HASH, User, UserSession
from app.user.passkeys import queries
from app.user.passkeys.ceremonies import Registered
from app.user.passkeys.models import Passkey, PasskeyOwner, UsedChallenge
from app.user.passkeys.queries import MAX_PASSKEYS
from app.user.passkeys.relying_party import RelyingParty, relying_party_of
from quart_upsun.database import Database
from quart_upsun.database.anonymization import EMPTIED
from quart_upsun.security.models import AuditEvent
from quart_upsun.testing.smtp import MailServer, mail_server
from tests.features.factories import Person, new_client
from tests.features.passkeys.authenticator import Authenticator, decode, encode
from tests.features.passkeys.steps import (
    LOGIN,
    PAGE,
    add_passkey,
    ask,
    events_of,
    log_in,
    send,
    stored,
)


async def page_of(client: Client, path: str = PAGE) -> BeautifulSoup:
    response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "private, no-store"
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def test_added_passkey_is_listed(app: Quart, client: Client, ada: Person) -> None:
    assert "No passkeys yet." in (await page_of(client)).text
    added = await add_passkey(client, Authenticator(), name="  My\n phone ")
    assert (added.status, added.location) == (303, PAGE)
    row = (await page_of(client)).select_one("#passkeys tbody tr")
    assert row is not None
    assert "My phone" in row.text
    assert "Never" in row.text
    (found,) = await stored(app)
    assert (found.user_id, found.rp_id, found.sign_count) == (ada.id, "localhost", 1)
    assert found.transports == ["hybrid", "internal"]
    assert (await events_of(app, ada.id))[-1] == Event.PASSKEY_ADDED


async def test_options_ask_for_a_discoverable_verified_passkey(
    app: Quart, client: Client, ada: Person, laptop: Authenticator, settings: Settings
) -> None:
    options = (await ask(client, f"{PAGE}options/"))["options"]
    assert options["rp"] == {"id": "localhost", "name": settings.site_name}
    assert options["user"]["name"] == ada.username
    assert options["attestation"] == "none"
    selection = options["authenticatorSelection"]
    assert (selection["residentKey"], selection["userVerification"]) == ("required", "required")
    (excluded,) = options["excludeCredentials"]
    assert decode(excluded["id"]) == laptop.credential_id
    # The handle is the same for all passkeys of the user, and says nothing about them.
    assert decode(options["user"]["id"]) == laptop.handle
    assert len(laptop.handle) == 32
    async with app.extensions["quart_upsun"].database.read() as session:
        handles = (await session.scalars(select(PasskeyOwner.handle))).all()
    assert list(handles) == [laptop.handle]


@pytest.mark.parametrize(
    ("change", "client_data"),
    [
        ({"origin": "https://evil.example"}, {}),
        ({"rp_id": "evil.example"}, {}),
        ({"is_user_verified": False}, {}),
        ({}, {"challenge": "AAAA"}),
        ({}, {"type": "webauthn.get"}),
        ({"credential_id": b"x" * 1024}, {}),
        ({"credential_id": b""}, {}),
    ],
)
async def test_registration_refuses(
    app: Quart,
    client: Client,
    ada: Person,
    change: dict[str, Any],
    client_data: dict[str, str],
) -> None:
    authenticator = Authenticator(**change)
    asked = await ask(client, f"{PAGE}options/")
    credential = authenticator.create(asked["options"], **client_data)
    answer = await send(client, PAGE, credential, asked["token"], name="Laptop")
    assert answer.status == 403
    assert "This passkey could not be verified." in answer.text
    assert await stored(app) == []


async def test_registration_refuses_a_key_that_is_not_on_the_curve(
    app: Quart, client: Client, ada: Person
) -> None:
    """Without an attestation nothing is signed, so only the first login would fail."""
    authenticator = Authenticator()
    numbers = authenticator.key.public_key().public_numbers()
    asked = await ask(client, f"{PAGE}options/")
    credential = authenticator.create(asked["options"])
    attestation = decode(credential["response"]["attestationObject"])
    broken = attestation.replace(numbers.y.to_bytes(32), bytes(31) + b"\x01")
    assert broken != attestation
    credential["response"]["attestationObject"] = encode(broken)
    assert (await send(client, PAGE, credential, asked["token"])).status == 403
    assert await stored(app) == []


async def test_registration_refuses_a_replayed_response(
    app: Quart, client: Client, ada: Person
) -> None:
    authenticator = Authenticator()
    asked = await ask(client, f"{PAGE}options/")
    credential = authenticator.create(asked["options"])
    assert (await send(client, PAGE, credential, asked["token"])).status == 303
    (found,) = await stored(app)
    await client.post(f"{PAGE}{found.id}/delete/")
    answer = await send(client, PAGE, credential, asked["token"])
    assert answer.status == 403
    assert "This took too long" in answer.text
    assert await stored(app) == []


async def test_registration_refuses_the_challenge_of_another_session(
    app: Quart, client: Client, ada: Person
) -> None:
    """Of another session in the same browser: the cookie with the nonce is the same."""
    authenticator = Authenticator()
    asked = await ask(client, f"{PAGE}options/")
    credential = authenticator.create(asked["options"])
    await client.post("/logout/")
    await ada.log_in(client)
    answer = await send(client, PAGE, credential, asked["token"])
    assert answer.status == 403
    assert await stored(app) == []


async def test_registration_refuses_a_login_challenge(
    app: Quart, client: Client, ada: Person
) -> None:
    asked = await ask(client, f"{PAGE}options/")
    other = await ask(client, f"{LOGIN}options/")
    asked["options"]["challenge"] = other["options"]["challenge"]
    credential = Authenticator().create(asked["options"])
    assert (await send(client, PAGE, credential, other["token"])).status == 403
    assert await stored(app) == []


@pytest.mark.parametrize("text", ["", "x", "null", "[]", "{}", "[" * 30_000])
async def test_malformed_registration_is_a_bad_request(
    client: Client, ada: Person, text: str
) -> None:
    asked = await ask(client, f"{PAGE}options/")
    assert (await send(client, PAGE, text, asked["token"])).status == 400


async def test_a_passkey_is_registered_once(
    app: Quart, client: Client, laptop: Authenticator
) -> None:
    """Neither twice for one user, nor for a second user."""
    assert "already registered" in (await add_passkey(client, laptop)).text
    grace, other = await Person().register(app), new_client(app)
    await grace.log_in(other)
    assert "already registered" in (await add_passkey(other, laptop)).text
    assert len(await stored(app)) == 1


async def test_users_cannot_exceed_the_limit(
    app: Quart, client: Client, database: Database, ada: Person, laptop: Authenticator
) -> None:
    async with database.write() as session:
        for number in range(MAX_PASSKEYS - 2):
            session.add(
                Passkey(
                    user_id=ada.id,
                    rp_id="localhost",
                    credential_id=b"%d" % number,
                    public_key=b"",
                    sign_count=0,
                    name="x",
                    transports=[],
                    is_backed_up=False,
                )
            )
    browsers = [new_client(app) for _ in range(3)]
    for browser in browsers:
        await ada.log_in(browser)
    answers = await asyncio.gather(*(add_passkey(each, Authenticator()) for each in browsers))
    assert sorted(answer.status for answer in answers) == [303, 403, 403]
    assert len(await stored(app)) == MAX_PASSKEYS
    assert (await client.get(f"{PAGE}new/")).location == PAGE
    assert f"You already have {MAX_PASSKEYS} passkeys." in (await page_of(client)).text


@pytest.mark.parametrize(
    ("name", "expected"), [("", "Passkey"), (" \u200b ", "Passkey"), ("x" * 200, "x" * 80)]
)
async def test_a_bad_name_does_not_lose_the_passkey(
    app: Quart, client: Client, ada: Person, name: str, expected: str
) -> None:
    await add_passkey(client, Authenticator(), name=name)
    assert [each.name for each in await stored(app)] == [expected]


async def test_passkeys_are_renamed(
    app: Quart, client: Client, ada: Person, laptop: Authenticator
) -> None:
    (found,) = await stored(app)
    soup = await page_of(client, f"{PAGE}{found.id}/")
    assert 'value="Laptop"' in str(soup.select_one("#passkeyNameForm input"))
    response = await client.post(f"{PAGE}{found.id}/", form={"name": "<b>Desk</b>"})
    assert (response.status_code, response.location) == (303, PAGE)
    assert "<b>Desk</b>" in (await page_of(client)).text
    assert (await events_of(app, ada.id))[-1] == Event.PASSKEY_RENAMED
    response = await client.post(f"{PAGE}{found.id}/", form={"name": " "})
    assert "Enter a name." in await response.get_data(as_text=True)


async def test_passkeys_of_other_users_cannot_be_seen_or_changed(
    app: Quart, laptop: Authenticator
) -> None:
    (found,) = await stored(app)
    other = new_client(app)
    await (await Person().register(app)).log_in(other)
    assert "Laptop" not in (await page_of(other)).text
    assert (await other.get(f"{PAGE}{found.id}/")).status_code == 404
    assert (await other.post(f"{PAGE}{found.id}/", form={"name": "x"})).status_code == 404
    assert (await other.post(f"{PAGE}{found.id}/delete/")).status_code == 404
    assert [each.name for each in await stored(app)] == ["Laptop"]


async def test_removed_passkey(
    app: Quart, client: Client, ada: Person, laptop: Authenticator
) -> None:
    (found,) = await stored(app)
    response = await client.post(f"{PAGE}{found.id}/delete/")
    assert (response.status_code, response.location) == (303, PAGE)
    assert await stored(app) == []
    assert (await events_of(app, ada.id))[-1] == Event.PASSKEY_REMOVED
    assert (await client.post(f"{PAGE}{found.id}/delete/")).status_code == 404
    assert (await client.post(f"{PAGE}{10**30}/delete/")).status_code == 404


async def set_password_hash(database: Database, person: Person, value: str | None) -> None:
    async with database.write() as session:
        change = update(User).where(User.id == person.id).values(password_hash=value)
        await session.execute(change)


@pytest.mark.parametrize("password_hash", [None, UNUSABLE_HASH])
async def test_the_last_way_to_log_in_is_never_removed(
    app: Quart,
    client: Client,
    database: Database,
    ada: Person,
    laptop: Authenticator,
    password_hash: str | None,
) -> None:
    await set_password_hash(database, ada, password_hash)
    phone = Authenticator()
    await add_passkey(client, phone)
    first, second = [each.id for each in await stored(app)]
    # Both at once: only one may go.
    browsers = [client, new_client(app)]
    await log_in(browsers[1], phone)
    await asyncio.gather(
        *(
            browser.post(f"{PAGE}{each}/delete/")
            for browser, each in zip(browsers, (first, second), strict=True)
        )
    )
    (left,) = await stored(app)
    await client.post(f"{PAGE}{left.id}/delete/")
    assert "This passkey is your only way to log in." in (await page_of(client)).text
    assert [each.id for each in await stored(app)] == [left.id]

    async def has_provider(session: object, user_id: int) -> bool:
        return user_id == ada.id

    get_site(app).has_other_login.append(has_provider)
    await client.post(f"{PAGE}{left.id}/delete/")
    assert await stored(app) == []


async def test_a_passkey_of_another_host_is_not_a_way_to_log_in(
    app: Quart, client: Client, database: Database, ada: Person, laptop: Authenticator
) -> None:
    await add_passkey(client, Authenticator(), name="Old")
    _, old = await stored(app)
    async with database.write() as session:
        change = update(Passkey).where(Passkey.id == old.id).values(rp_id="www.example.com")
        await session.execute(change)
    assert "Works only at www.example.com" in (await page_of(client)).text
    await set_password_hash(database, ada, None)
    first, _ = await stored(app)
    await client.post(f"{PAGE}{first.id}/delete/")
    assert len(await stored(app)) == 2
    await client.post(f"{PAGE}{old.id}/delete/")
    assert len(await stored(app)) == 1


async def test_ended_session_cannot_add_or_remove_passkeys(
    app: Quart, database: Database, ada: Person, laptop: Authenticator
) -> None:
    """Otherwise a stolen session could leave a passkey behind."""
    async with database.write() as session:
        user = await accounts.get_user(session, ada.id)
        assert user is not None
        session.expunge(user)
        await accounts.end_sessions(session, ada.id, actor_id=ada.id)
    (found,) = await stored(app)
    registered = Registered(b"id", b"key", 0, [], False)
    with pytest.raises(accounts.SessionEndedError):
        async with database.write() as session:
            await queries.add_passkey(session, user, registered, rp_id="localhost", name="x")
    with pytest.raises(accounts.SessionEndedError):
        async with database.write() as session:
            await queries.remove_passkey(session, user, found.id, "localhost")
    assert len(await stored(app)) == 1


async def test_export_has_names_and_times_but_no_keys(
    client: Client, laptop: Authenticator
) -> None:
    data = await (await client.get("/account/data.json")).get_json()
    (row,) = data["passkeys"]
    assert row.keys() == {"name", "host", "created_at", "last_used_at"}
    assert (row["name"], row["host"], row["last_used_at"]) == ("Laptop", "localhost", None)


async def test_deleting_the_account_deletes_its_passkeys(
    app: Quart, database: Database, ada: Person, laptop: Authenticator
) -> None:
    async with database.write() as session:
        user = await accounts.get_user(session, ada.id)
        assert user is not None
        await accounts.delete_user(session, user)
    assert await stored(app) == []
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(PasskeyOwner)) == 0


def test_no_passkey_works_in_a_preview() -> None:
    for model in (Passkey, PasskeyOwner, UsedChallenge):
        assert model.__sanitize__ == EMPTIED


async def test_lost_passkeys_are_removed_with_a_command(
    app: Quart, client: Client, database: Database, ada: Person, laptop: Authenticator
) -> None:
    async with database.write() as session:
        user = await accounts.get_user(session, ada.id)
        assert user is not None
        await queries.set_required(session, user, True, "localhost")
    thief = new_client(app)
    await log_in(thief, laptop)
    async with database.write() as session:
        assert await queries.remove_all_passkeys(session, user) == 1
    assert (await thief.get(PAGE)).status_code == 303
    async with database.read() as session:
        assert not (await session.scalars(select(PasskeyOwner.is_required))).one()
    assert await stored(app) == []
    assert (await events_of(app, ada.id))[-1] == Event.PASSKEY_REMOVED


async def test_administrator_removes_lost_passkeys(
    app: Quart, client: Client, database: Database, ada: Person, laptop: Authenticator
) -> None:
    if "admin" not in app.blueprints:
        pytest.skip("this application has no administration pages")
    root = await Person().register(app, administrator=True)
    admin = new_client(app)
    await root.log_in(admin)
    path = f"/admin/users/{ada.id}/passkeys/remove/"
    assert path in await (await admin.get(f"/admin/users/{ada.id}/")).get_data(as_text=True)
    assert (await client.post(path)).status_code == 404  # a member
    assert (await admin.post("/admin/users/999999/passkeys/remove/")).status_code == 404
    assert (await admin.post(f"/admin/users/{root.id}/passkeys/remove/")).status_code == 303
    assert len(await stored(app)) == 1
    assert (await admin.post(path)).status_code == 303
    assert await stored(app) == []
    assert (await client.get(PAGE)).status_code == 303  # logged out
    async with database.read() as session:
        query = select(AuditEvent.actor_id).where(AuditEvent.kind == Event.PASSKEY_REMOVED)
        assert (await session.scalars(query)).all() == [root.id]
    assert path not in await (await admin.get(f"/admin/users/{ada.id}/")).get_data(as_text=True)
    assert (await admin.post(path)).status_code == 303  # nothing left to do
    async with database.write() as session:
        await session.execute(update(UserSession).values(proved_at=func.now() - timedelta(days=1)))
    assert (await admin.post(path)).status_code == 403


class TestMails:
    @pytest.fixture
    async def mailbox(self) -> Any:
        async with mail_server() as mailbox:
            yield mailbox

    @pytest.fixture
    def settings(self, settings: Settings, mailbox: MailServer) -> Settings:
        origin = "https://www.example.com"
        return settings.model_copy(
            update={"mail_url": SecretStr(mailbox.url), "public_origin": origin}
        )

    async def test_owner_is_told(
        self, app: Quart, client: Client, mailbox: MailServer, ada: Person
    ) -> None:
        await add_passkey(client, Authenticator(origin="https://www.example.com"))
        (found,) = await stored(app)
        assert found.rp_id == "www.example.com"
        await client.post(f"{PAGE}{found.id}/delete/")
        await app.extensions["quart_upsun"].jobs.run_due()
        for message, subject in zip(
            sorted(mailbox.messages, key=lambda each: str(each["Subject"])),
            ("A passkey was added to your account", "A passkey was removed from your account"),
            strict=True,
        ):
            assert (message["Subject"], message["To"]) == (subject, ada.email)
            body = message.get_body(("plain",))
            assert body is not None
            text = body.get_content()
            for each in ("Laptop", "If this was not you", "/forgot/", PAGE):
                assert each in text


async def test_switched_off(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"passkeys": False}))
    async with app.test_app():
        client = new_client(app)
        await (await Person().register(app)).log_in(client)
        for path in (PAGE, f"{PAGE}new/", f"{LOGIN}second/"):
            assert (await client.get(path)).status_code == 404
        for path in (LOGIN, f"{LOGIN}options/"):
            assert (await client.post(path)).status_code == 404
        account = await (await client.get("/account/")).get_data(as_text=True)
        login = await (await new_client(app).get("/login/")).get_data(as_text=True)
        assert "asskey" not in account + login
        data = await (await client.get("/account/data.json")).get_json()
        assert data["passkeys"] == []


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://www.example.com", RelyingParty("www.example.com", "https://www.example.com")),
        (
            "https://feature-4tw7dqi.eu-5.platformsh.site",
            RelyingParty(
                "feature-4tw7dqi.eu-5.platformsh.site",
                "https://feature-4tw7dqi.eu-5.platformsh.site",
            ),
        ),
        ("https://example.com:8443", RelyingParty("example.com", "https://example.com:8443")),
        ("http://127.0.0.1:8000", RelyingParty("localhost", "http://localhost:8000")),
        ("http://[::1]:8000", RelyingParty("localhost", "http://localhost:8000")),
        ("http://0.0.0.0:5000", RelyingParty("localhost", "http://localhost:5000")),
        ("http://localhost:8000", RelyingParty("localhost", "http://localhost:8000")),
        ("http://app.localhost", RelyingParty("app.localhost", "http://app.localhost")),
        # A page without HTTPS, an IP address, and an environment without a route.
        ("http://www.example.com", None),
        ("http://192.168.1.5:8000", None),
        ("https://192.168.1.5", None),
        ("", None),
    ],
)
def test_relying_party_comes_from_the_public_origin(
    origin: str, expected: RelyingParty | None
) -> None:
    assert relying_party_of(origin) == expected


async def test_unusable_origin_switches_passkeys_off(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"public_origin": "http://192.168.1.5"}))
    async with app.test_app():
        assert (await new_client(app).get(PAGE)).status_code == 404


async def test_a_challenge_for_a_proof_cannot_add_a_passkey(
    app: Quart, client: Client, ada: Person, laptop: Authenticator
) -> None:
    """Adding one needs a recent proof, and asking for that challenge does not."""
    creation = await ask(client, f"{PAGE}options/")
    proof = await ask(client, f"{PAGE}proof/options/")
    options = {**creation["options"], "challenge": proof["options"]["challenge"]}
    answer = await send(client, PAGE, Authenticator().create(options), proof["token"], name="x")
    assert answer.status == 403
    assert len(await stored(app)) == 1
