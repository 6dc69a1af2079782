"""Flows with emails: email confirmation, password reset, invitations and notifications."""

import asyncio
import re
from collections.abc import AsyncIterator
from email.message import EmailMessage

import pytest
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, text

from app.settings import Settings
from app.site import get_site
from app.user import accounts, emails, recovery
from app.user.models import User
from quart_upsun.jobs.models import Job
from quart_upsun.security import signing as tokens
from quart_upsun.security.models import AuditEvent
from quart_upsun.testing.smtp import MailServer, mail_server
from tests.features.factories import Person, invalid_fields, new_client

NEW_PASSWORD = "staple battery horse"


@pytest.fixture
async def mailbox() -> AsyncIterator[MailServer]:
    async with mail_server() as server:
        yield server


@pytest.fixture
def settings(settings: Settings, mailbox: MailServer) -> Settings:
    return settings.model_copy(
        update={
            "mail_url": SecretStr(mailbox.url),
            "public_origin": "https://www.example.com",
        }
    )


async def arrived(app: Quart, mailbox: MailServer, number: int = 1) -> EmailMessage:
    """Run due jobs, and return an email by its number, starting at 1."""
    await app.extensions["quart_upsun"].jobs.run_due()
    return mailbox.messages[number - 1]


async def link(app: Quart, mailbox: MailServer, number: int = 1) -> str:
    """Return the path of the first link in an email, by its number, starting at 1."""
    message = await arrived(app, mailbox, number)
    part = message.get_body(("plain",))
    assert part is not None
    found = re.search(r"https://www\.example\.com(/\S*)", part.get_content())
    assert found is not None
    return found[1]


async def user_of(app: Quart, person: Person) -> User:
    async with app.extensions["quart_upsun"].database.read() as session:
        user = await accounts.get_user_by_username(session, person.username)
    assert user is not None
    return user


async def kinds(app: Quart) -> list[str]:
    async with app.extensions["quart_upsun"].database.read() as session:
        query = select(AuditEvent.kind).order_by(AuditEvent.id)
        return list(await session.scalars(query))


async def register(client: Client, person: Person) -> None:
    assert (await client.post("/register/", form=person.registration)).status_code == 303


async def ask_for_reset(client: Client, email: str) -> str:
    response = await client.post("/forgot/", form={"email": email})
    assert (response.status_code, response.location) == (303, "/forgot/")
    return await (await client.get("/forgot/")).get_data(as_text=True)


def reset_form(password: str = NEW_PASSWORD) -> dict[str, str]:
    return {"password": password, "confirm": password}


async def test_link_confirms_email_address(app: Quart, client: Client, mailbox: MailServer) -> None:
    ada = Person(email="Ada@example.com")
    await register(client, ada)
    path = await link(app, mailbox)
    message = mailbox.messages[0]
    assert message["To"] == ada.email
    assert message["Subject"] == "Confirm your email address"

    await ada.log_in(client)
    members = await (await client.get("/users/")).get_data(as_text=True)
    assert "is not confirmed yet" in members
    page = await client.get(path)  # like a link scanner
    assert page.status_code == 200
    assert (await user_of(app, ada)).email is None

    response = await client.post(path)
    assert (response.status_code, response.location) == (303, "/account/")
    user = await user_of(app, ada)
    assert (user.email, user.pending_email) == (ada.email, None)
    assert "is not confirmed yet" not in await (await client.get("/users/")).get_data(as_text=True)
    assert (await client.post(path)).status_code == 303  # idempotent
    assert (await kinds(app)).count("email address confirmed") == 1


async def test_resend_confirmation_email(app: Quart, client: Client, mailbox: MailServer) -> None:
    ada = await Person().register(app, confirmed=False)
    await ada.log_in(client)
    assert (await client.post("/account/resend/")).status_code == 303
    assert (await client.post(await link(app, mailbox))).status_code == 303
    assert (await user_of(app, ada)).email == ada.email
    assert (await client.post("/account/resend/")).status_code == 303
    text = await (await client.get("/account/")).get_data(as_text=True)
    assert "already confirmed" in text


async def test_invitations_require_confirmed_email_address(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = await Person().register(app, confirmed=False)
    await ada.log_in(client)
    assert (await client.get("/invite/")).status_code == 403
    assert (await client.post("/invite/", form={"email": "bob@example.com"})).status_code == 403
    async with app.extensions["quart_upsun"].database.write() as session:
        await accounts.confirm_email(session, ada.id, ada.email)
    assert (await client.post("/invite/", form={"email": "bob@example.com"})).status_code == 303
    assert await link(app, mailbox) == "/register/"
    assert mailbox.messages[0]["To"] == "bob@example.com"


async def test_only_the_owner_learns_that_an_email_address_has_an_account(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = await Person(email="ada@example.com").register(app)
    await register(client, Person(email="ADA@example.com"))
    message = await arrived(app, mailbox)
    assert message["Subject"] == "You already have an account"
    assert ada.username in str(message.get_body(("plain",)))


async def test_first_confirmed_claim_gets_the_email_address(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    first, second = Person(email="contested@example.com"), Person(email="contested@example.com")
    await register(client, first)
    first_link = await link(app, mailbox, 1)
    await register(client, second)
    second_link = await link(app, mailbox, 2)
    assert (await client.post(second_link)).status_code == 303
    assert (await client.post(first_link)).status_code == 303
    assert "Another account has already confirmed" in await (await client.get("/")).get_data(
        as_text=True
    )
    assert (await user_of(app, second)).email == second.email
    assert (await user_of(app, first)).email is None


async def test_password_reset_link_works_once(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = await Person().register(app)
    elsewhere = new_client(app)
    await ada.log_in(elsewhere)
    await ask_for_reset(client, ada.email.upper())
    path = await link(app, mailbox)
    page = await client.get(path)
    assert page.status_code == 200
    assert ada.username in await page.get_data(as_text=True)
    refused = await client.post(path, form=reset_form(ada.email))
    assert invalid_fields(await refused.get_data(as_text=True)) == ["password"]

    response = await client.post(path, form=reset_form())
    assert (response.status_code, response.location) == (303, "/login/")
    assert (await elsewhere.get("/users/")).status_code == 303  # signed out
    await Person(ada.username, ada.email, NEW_PASSWORD).log_in(new_client(app))
    for again in (await client.get(path), await client.post(path, form=reset_form())):
        assert again.status_code == 410
    message = await arrived(app, mailbox, 2)
    assert message["Subject"] == "Your password was changed"
    assert {"password reset requested", "password reset"} <= set(await kinds(app))


@pytest.mark.parametrize("has_other_login", [False, True])
async def test_reset_tells_about_other_ways_to_log_in(
    app: Quart, client: Client, mailbox: MailServer, has_other_login: bool
) -> None:
    """An attacker may have added one, and the owner may need one."""
    ada = await Person().register(app)

    async def has_passkey(session: object, user_id: int) -> bool:
        return has_other_login and user_id == ada.id

    get_site(app).has_other_login.append(has_passkey)
    await ask_for_reset(client, ada.email)
    await client.post(await link(app, mailbox), form=reset_form())
    page = await (await client.get("/login/")).get_data(as_text=True)
    assert ("remove those that you do not know" in page) is has_other_login
    text = (await arrived(app, mailbox, 2)).get_body(("plain",))
    assert text is not None
    assert ("Remove those that you do not know" in text.get_content()) is has_other_login


async def test_concurrent_uses_of_one_reset_link(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = await Person().register(app)
    await ask_for_reset(client, ada.email)
    path = await link(app, mailbox)
    responses = await asyncio.gather(
        *(new_client(app).post(path, form=reset_form()) for _ in range(3))
    )
    assert sorted(response.status_code for response in responses) == [303, 410, 410]


async def test_password_reset_cancels_pending_email_change(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    """An attacker who knows the password requests the change; the owner resets the password."""
    ada = await Person().register(app)
    thief = new_client(app)
    await ada.log_in(thief)
    form = {"email": "thief@example.com"}
    assert (await thief.post("/account/email/", form=form)).status_code == 303
    await arrived(app, mailbox, 2)
    await mailbox.wait_for_mail(ada.email, "Your email address is about to change")
    email = await mailbox.wait_for_mail("thief@example.com", "Confirm your email address")
    path = await link(app, mailbox, mailbox.messages.index(email) + 1)
    await ask_for_reset(client, ada.email)
    assert (await client.post(await link(app, mailbox, 3), form=reset_form())).status_code == 303
    assert (await thief.get(path)).status_code == 410
    assert (await thief.post(path)).status_code == 410
    assert (await user_of(app, ada)).email == ada.email


async def test_claiming_an_email_address_does_not_reveal_its_owner(
    app: Quart, mailbox: MailServer
) -> None:
    """The audit trail must not reveal whether another user has confirmed the address."""
    bob = await Person().register(app)
    seen = []
    for email in (bob.email, "nobody@example.com"):
        spy, client = Person(email=email), new_client(app)
        await register(client, spy)
        await spy.log_in(client)
        await ask_for_reset(new_client(app), email)
        page = await (await client.get("/account/")).get_data(as_text=True)
        seen.append("reset requested" in page)
    assert seen[0] == seen[1]


async def test_reset_email_has_a_link_for_each_claim(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = await Person(email="ada@example.com").register(app, confirmed=False)
    await Person(email="ada@example.com").register(
        app, confirmed=False
    )  # a newer claim to the address
    await ask_for_reset(client, "ada@example.com")
    message = (await arrived(app, mailbox)).get_body(("plain",))
    assert message is not None
    text = message.get_content()
    assert text.count("https://www.example.com/reset/") == 2
    own = text.partition(f"For the account {ada.username}:")[2]
    found = re.search(r"https://www\.example\.com(/\S*)", own)
    assert found is not None
    assert ada.username in await (await client.get(found[1])).get_data(as_text=True)


async def test_confirmation_emails_are_rate_limited_per_address(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    for _ in range(emails.CONFIRMATION_LIMIT.count + 3):
        await register(client, Person(email="victim@example.com"))
    async with app.extensions["quart_upsun"].database.read() as session:
        count = await session.scalar(select(func.count(Job.id)))
    assert count == emails.CONFIRMATION_LIMIT.count


@pytest.mark.parametrize("what", ["password", "address", "session"])
async def test_reset_link_is_invalid_after_account_change(
    app: Quart, client: Client, mailbox: MailServer, what: str
) -> None:
    ada = await Person().register(app)
    await ask_for_reset(client, ada.email)
    path = await link(app, mailbox)
    if what == "address":
        change = "UPDATE users SET email = 'other@example.com'"
    else:  # a password change also increments the session version
        change = "UPDATE users SET session_version = session_version + 1"
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(text(change))
    assert (await client.get(path)).status_code == 410
    assert (await client.post(path, form=reset_form())).status_code == 410


async def test_reset_link_is_invalid_when_expired_or_key_is_removed(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await Person().register(app)
    client = new_client(app)
    user = await user_of(app, ada)
    async with app.app_context():
        good = emails.create_reset_token(user)
        other_purpose = tokens.sign("confirm", [user.id, user.email])
        app.config["TOKEN_KEYS"] = ["another key"]
        other_key = emails.create_reset_token(user)
        app.config["TOKEN_KEYS"] = ["a new key", *settings_keys(app)]
    assert (await client.get(f"/reset/{good}/")).status_code == 200, (
        "the previous key is a fallback"
    )
    for bad in (other_purpose, other_key, good[:-1], "x", "%00"):
        assert (await client.get(f"/reset/{bad}/")).status_code == 410, bad
    monkeypatch.setattr(emails, "RESET_LIFETIME_SECONDS", -1)
    assert (await client.get(f"/reset/{good}/")).status_code == 410


def settings_keys(app: Quart) -> list[str]:
    keys: list[str] = app.extensions["test_keys"]
    return keys


@pytest.fixture(autouse=True)
def remember_keys(app: Quart) -> None:
    app.extensions["test_keys"] = app.config["TOKEN_KEYS"]


async def test_forgot_password_does_not_reveal_accounts(
    app: Quart, client: Client, mailbox: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text and the SQL statements are the same. The job that sends the email differs."""
    ada = await Person().register(app)
    statements: list[str] = []

    def listen(connection: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    from sqlalchemy import event

    await client.get("/forgot/")
    pages, executed = [], []
    engine = app.extensions["quart_upsun"].database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", listen)
    for email in (ada.email, "nobody@example.com"):
        statements.clear()
        pages.append(await ask_for_reset(client, email))
        executed.append([each for each in statements if "rate_limits" not in each])
    event.remove(engine, "before_cursor_execute", listen)
    assert pages[0] == pages[1]
    assert executed[0] == executed[1] != []


async def test_reset_emails_are_rate_limited_per_address(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = await Person().register(app)
    pages = {await ask_for_reset(client, ada.email) for _ in range(5)}
    assert len(pages) == 1
    async with app.extensions["quart_upsun"].database.read() as session:
        count = await session.scalar(select(func.count(Job.id)))
    assert count == recovery.RESET_EMAIL_LIMIT.count


async def test_deactivated_account_gets_no_reset_link(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = await Person().register(app)
    async with app.extensions["quart_upsun"].database.write() as session:
        await accounts.deactivate_user(session, ada.id)
    await ask_for_reset(client, ada.email)
    await app.extensions["quart_upsun"].jobs.run_due()
    assert mailbox.messages == []


@pytest.mark.parametrize("email", ["", "nowhere", "a@b@c", "x" * 5000])
async def test_forgot_password_rejects_invalid_email_address(client: Client, email: str) -> None:
    response = await client.post("/forgot/", form={"email": email})
    assert response.status_code == 200
    assert invalid_fields(await response.get_data(as_text=True)) == ["email"]


async def test_email_change_is_confirmed_and_old_address_notified(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = await Person(email="old@example.com").register(app)
    await ada.log_in(client)
    response = await client.post("/account/email/", form={"email": "new@example.com"})
    assert response.status_code == 303
    await arrived(app, mailbox, 2)
    by_address = {str(message["To"]): message for message in mailbox.messages}
    assert by_address["old@example.com"]["Subject"] == "Your email address is about to change"
    assert (await user_of(app, ada)).email == "old@example.com"
    number = mailbox.messages.index(by_address["new@example.com"]) + 1
    assert (await client.post(await link(app, mailbox, number))).status_code == 303
    user = await user_of(app, ada)
    assert (user.email, user.pending_email) == ("new@example.com", None)


async def test_confirmation_link_is_invalid_after_email_change(
    app: Quart, client: Client, mailbox: MailServer
) -> None:
    ada = Person(email="typo@example.com")
    await register(client, ada)
    wrong = await link(app, mailbox)
    await ada.log_in(client)
    form = {"email": "right@example.com"}
    assert (await client.post("/account/email/", form=form)).status_code == 303
    assert (await client.post(wrong)).status_code == 410
    assert (await client.post(await link(app, mailbox, 2))).status_code == 303
    assert (await user_of(app, ada)).email == "right@example.com"


async def test_links_ignore_the_host_of_the_request(app: Quart, mailbox: MailServer) -> None:
    ada = Person()
    response = await new_client(app).post(
        "/register/",
        form=ada.registration,
        headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"},
    )
    assert response.status_code == 303
    assert (await link(app, mailbox)).startswith("/confirm/")
    assert "evil" not in str(mailbox.messages[0])
