"""Turning two-factor authentication on and off, recovery codes, administrators, commands."""

import asyncio
import json
import threading
from collections.abc import Sequence
from datetime import timedelta
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner
from pydantic import SecretStr, ValidationError
from quart import Quart
from quart.cli import ScriptInfo
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, text, update

from app import create_app
from app.settings import Settings
from app.user import accounts
from app.user.audit_trail import Event
from app.user.commands import group
from app.user.models import Role, UserSession
from app.user.two_factor import enrolment, required
from app.user.two_factor.models import RecoveryCode, TwoFactorSecret
from quart_upsun.database import Database
from quart_upsun.jobs.models import Job
from quart_upsun.security import encryption
from quart_upsun.security.models import AuditEvent
from tests.features.factories import Person, invalid_fields, new_client
from tests.features.two_factor.factories import (
    CODE_PAGE,
    PAGE,
    Authenticator,
    Clock,
    codes_on,
    enrol,
    is_logged_in,
    log_in_without_code,
    only,
    soup_of,
    start,
    submit_password,
)

needs_admin = pytest.mark.skipif(
    find_spec("app.admin") is None, reason="the administration was removed"
)
needs_tokens = pytest.mark.skipif(
    find_spec("app.user.tokens") is None, reason="access tokens were removed"
)


async def events_of(database: Database, person: Person) -> Sequence[str]:
    """Return the kinds of the audit events of a user, oldest first."""
    async with database.read() as session:
        query = select(AuditEvent.kind).where(AuditEvent.user_id == person.id)
        return (await session.scalars(query.order_by(AuditEvent.id))).all()


async def forget_proof(database: Database) -> None:
    """Let the proofs of all sessions expire."""
    async with database.write() as session:
        await session.execute(
            update(UserSession).values(proved_at=func.now() - timedelta(minutes=16))
        )


async def test_code_turns_it_on_and_shows_recovery_codes_once(
    client: Client, ada: Person, clock: Clock, database: Database
) -> None:
    other = new_client(client.app)
    await ada.log_in(other)
    phone = await start(client, clock)
    # Until a code confirms it, logins need none.
    await log_in_without_code(new_client(client.app), ada)
    response = await client.post(f"{PAGE}setup/", form={"code": phone.wrong_code()})
    assert invalid_fields(await response.get_data(as_text=True)) == ["code"]
    response = await client.post(f"{PAGE}setup/", form={"code": phone.code()})
    assert response.headers["Cache-Control"] == "private, no-store"
    soup = await soup_of(response)
    codes = codes_on(soup)
    assert len(set(codes)) == 10
    link = only(soup, "a[download]")
    assert link["download"] == "recovery-codes.txt"
    file = unquote(str(link["href"]).partition(",")[2])
    assert [line for line in file.split("\r\n") if line in codes] == codes
    assert ada.username in file
    assert await is_logged_in(client)
    assert not await is_logged_in(other)
    for path in (PAGE, f"{PAGE}setup/"):
        page = await (await client.get(path, follow_redirects=True)).get_data(as_text=True)
        assert not any(code in page for code in codes)
        assert phone.secret[:4] not in page
    assert "10 of 10 recovery codes" in page
    await submit_password(new_client(client.app), ada)
    assert Event.TWO_FACTOR_ENABLED in await events_of(database, ada)


async def test_database_holds_neither_secret_nor_recovery_codes(
    phone: Authenticator, database: Database
) -> None:
    async with database.read() as session:
        rows = str(
            (
                await session.execute(
                    text("SELECT s::text, r::text FROM two_factor_secrets s, recovery_codes r")
                )
            ).all()
        )
        (secret,) = (await session.scalars(select(TwoFactorSecret.secret))).all()
    assert phone.secret not in rows
    assert phone.secret.encode() not in secret
    for code in phone.recovery_codes:
        assert code.replace("-", "").encode().hex() not in rows
        assert code not in rows


async def test_setup_needs_a_proof(client: Client, ada: Person, database: Database) -> None:
    await forget_proof(database)
    assert (await client.post(PAGE)).status_code == 403
    assert (await client.get(f"{PAGE}setup/")).status_code == 403
    async with database.read() as session:
        assert (await session.scalars(select(TwoFactorSecret))).all() == []


async def test_encryption_does_not_block_the_event_loop(
    client: Client, ada: Person, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library takes tens of milliseconds to import."""
    loop, threads = threading.get_ident(), set()
    for name in ("encrypt", "decrypt"):
        function = getattr(encryption, name)

        def recorded(*args: Any, function: Any = function) -> Any:
            threads.add(threading.get_ident())
            return function(*args)

        monkeypatch.setattr(encryption, name, recorded)
    await enrol(client, clock)
    assert threads
    assert loop not in threads


async def test_setup_without_start_redirects(client: Client, ada: Person) -> None:
    response = await client.get(f"{PAGE}setup/")
    assert (response.status_code, response.location) == (303, PAGE)
    response = await client.post(f"{PAGE}setup/", form={"code": "123456"})
    assert (response.status_code, response.location) == (303, PAGE)


async def test_starting_again_replaces_only_an_unconfirmed_secret(
    client: Client, ada: Person, clock: Clock
) -> None:
    first = await start(client, clock)
    phone = await start(client, clock)
    assert first.secret != phone.secret
    response = await client.post(f"{PAGE}setup/", form={"code": first.code()})
    assert invalid_fields(await response.get_data(as_text=True)) == ["code"]
    await client.post(f"{PAGE}setup/", form={"code": phone.code()})
    await client.post(PAGE)
    assert (await client.get(f"{PAGE}setup/")).status_code == 303
    browser = new_client(client.app)
    await submit_password(browser, ada)
    response = await browser.post(CODE_PAGE, form={"code": phone.next_code()})
    assert response.status_code == 303


async def test_renewed_recovery_codes_replace_the_previous_ones(
    client: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    soup = await soup_of(await client.post(f"{PAGE}recovery-codes/"))
    codes = codes_on(soup)
    assert len(codes) == 10
    assert not set(codes) & set(phone.recovery_codes)
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(RecoveryCode)) == 10
    browser = new_client(client.app)
    await submit_password(browser, ada)
    for code, status in ((phone.recovery_codes[0], 200), (codes[0], 303)):
        response = await browser.post("/login/recovery-code/", form={"code": code})
        assert response.status_code == status
    events = await events_of(database, ada)
    assert Event.RECOVERY_CODES_RENEWED in events
    await forget_proof(database)
    assert (await client.post(f"{PAGE}recovery-codes/")).status_code == 403


async def test_concurrent_renewals_leave_ten_codes(
    app: Quart, ada: Person, phone: Authenticator, database: Database
) -> None:
    async def renew() -> None:
        async with database.write() as session:
            user = await accounts.get_user(session, ada.id)
            assert user is not None
            await enrolment.renew_recovery_codes(session, user)

    await asyncio.gather(*(renew() for _ in range(4)))
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(RecoveryCode)) == 10


@pytest.mark.parametrize(
    ("form", "invalid"),
    [
        ({"current_password": "wrong password", "code": "right"}, ["current_password"]),
        ({"code": "right"}, ["current_password"]),
        ({"current_password": "right"}, ["code"]),
        ({"current_password": "right", "code": "wrong"}, ["code"]),
        ({"current_password": "right", "code": "letters"}, ["code"]),
    ],
)
async def test_turning_off_needs_password_and_code(
    client: Client, ada: Person, phone: Authenticator, form: dict[str, str], invalid: list[str]
) -> None:
    values = {"right": {"current_password": ada.password, "code": phone.code()}}
    values["wrong"] = {"code": phone.wrong_code()}
    sent = {name: values.get(value, {}).get(name, value) for name, value in form.items()}
    response = await client.post(f"{PAGE}disable/", form=sent)
    assert response.status_code == 200
    assert invalid_fields(await response.get_data(as_text=True)) == invalid
    await submit_password(new_client(client.app), ada)


@pytest.mark.parametrize("kind", ["code", "recovery code"])
async def test_turning_off_ends_other_sessions(
    client: Client, ada: Person, phone: Authenticator, database: Database, kind: str
) -> None:
    other = new_client(client.app)
    await submit_password(other, ada)
    await other.post(CODE_PAGE, form={"code": phone.code()})
    assert await is_logged_in(other)
    code = phone.next_code() if kind == "code" else phone.recovery_codes[3]
    form = {"current_password": ada.password, "code": code}
    response = await client.post(f"{PAGE}disable/", form=form)
    assert (response.status_code, response.location) == (303, PAGE)
    assert await is_logged_in(client)
    assert not await is_logged_in(other)
    await log_in_without_code(new_client(client.app), ada)
    assert Event.TWO_FACTOR_DISABLED in await events_of(database, ada)
    async with database.read() as session:
        assert (await session.scalars(select(RecoveryCode))).all() == []
        assert (await session.scalars(select(TwoFactorSecret))).all() == []


async def test_turning_off_without_a_password_needs_the_code(
    client: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    """As for an account that another provider created."""
    async with database.write() as session:
        await session.execute(text("UPDATE users SET password_hash = NULL"))
    soup = await soup_of(await client.get(PAGE))
    assert soup.select("#disableForm input[type=password]") == []
    response = await client.post(f"{PAGE}disable/", form={"code": phone.wrong_code()})
    assert response.status_code == 200
    response = await client.post(f"{PAGE}disable/", form={"code": phone.code()})
    assert response.status_code == 303


async def test_code_is_a_proof_of_identity(
    client: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    await forget_proof(database)
    soup = await soup_of(await client.post(f"{PAGE}recovery-codes/"))
    assert only(soup, "#proof_code")["autocomplete"] == "one-time-code"
    wrong = {"proof_code": phone.wrong_code()}
    assert (await client.post(f"{PAGE}recovery-codes/", form=wrong)).status_code == 403
    right = {"proof_code": phone.code()}
    assert (await client.post(f"{PAGE}recovery-codes/", form=right)).status_code == 200
    await forget_proof(database)
    assert (await client.post(f"{PAGE}recovery-codes/", form=right)).status_code == 403


async def test_proof_page_offers_no_code_to_users_without_app(
    client: Client, ada: Person, database: Database
) -> None:
    await forget_proof(database)
    soup = await soup_of(await client.post(PAGE))
    assert soup.select("#proof_code") == []


@needs_admin
async def test_administrator_helps_a_user_with_a_lost_device(
    app: Quart, client: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    root = await Person().register(app, administrator=True)
    admin = new_client(app)
    await root.log_in(admin)
    path = f"/admin/users/{ada.id}/two-factor/disable/"
    assert path in await (await admin.get(f"/admin/users/{ada.id}/")).get_data(as_text=True)
    assert (await client.post(path)).status_code == 404  # a member
    assert (await admin.post("/admin/users/999999/two-factor/disable/")).status_code == 404
    assert (await admin.post(path)).status_code == 303
    assert not await is_logged_in(client)
    await log_in_without_code(new_client(app), ada)
    async with database.read() as session:
        query = select(AuditEvent.actor_id).where(AuditEvent.kind == Event.TWO_FACTOR_DISABLED)
        assert (await session.scalars(query)).all() == [root.id]
    assert path not in await (await admin.get(f"/admin/users/{ada.id}/")).get_data(as_text=True)
    assert (await admin.post(path)).status_code == 303  # nothing left to do
    await forget_proof(database)
    assert (await admin.post(path)).status_code == 403


@needs_admin
async def test_administrators_turn_off_their_own_with_password_and_code(
    app: Quart, client: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    async with database.write() as session:
        await accounts.set_role(session, ada.id, Role.ADMINISTRATOR)
    path = f"/admin/users/{ada.id}/two-factor/disable/"
    assert path not in await (await client.get(f"/admin/users/{ada.id}/")).get_data(as_text=True)
    assert (await client.post(path)).status_code == 303
    await submit_password(new_client(app), ada)


@needs_admin
async def test_required_administrators_are_led_to_enrol(settings: Settings, clock: Clock) -> None:
    app = create_app(settings.model_copy(update={"require_two_factor": "administrators"}))
    async with app.test_app():
        client, member = new_client(app), new_client(app)
        root = await Person().register(app, administrator=True)
        await root.log_in(client)
        for path in ("/admin/", "/admin/audit/"):
            response = await client.get(path)
            assert (response.status_code, response.location) == (303, PAGE)
        assert (await client.post("/admin/users/1/deactivate/")).status_code == 303
        assert await is_logged_in(client)
        person = await Person().register(app)
        await person.log_in(member)
        assert (await member.get("/admin/")).status_code == 404
        assert (await member.get("/users/")).status_code == 200
        await enrol(client, clock)
        assert (await client.get("/admin/")).status_code == 200


@needs_admin
async def test_by_default_administrators_need_no_second_factor(app: Quart, client: Client) -> None:
    assert required.redirect_administrator not in app.before_request_funcs[None]
    root = await Person().register(app, administrator=True)
    await root.log_in(client)
    assert (await client.get("/admin/")).status_code == 200


def test_requirement_needs_the_feature(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="REQUIRE_TWO_FACTOR needs"):
        Settings(
            database_url=settings.database_url,
            secret_key=SecretStr("x"),
            two_factor=False,
            require_two_factor="administrators",
        )


async def test_switched_off_it_has_no_pages_and_asks_for_no_code(
    settings: Settings, app: Quart, client: Client, ada: Person, phone: Authenticator
) -> None:
    off = create_app(settings.model_copy(update={"two_factor": False}))
    async with off.test_app():
        browser = new_client(off)
        await log_in_without_code(browser, ada)
        for path in (PAGE, f"{PAGE}setup/", CODE_PAGE, "/login/recovery-code/"):
            assert (await browser.get(path)).status_code == 404
        assert "two-factor" not in await (await browser.get("/account/")).get_data(as_text=True)


async def test_notices_are_mailed_to_the_confirmed_address(
    app: Quart, client: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    await client.post(f"{PAGE}recovery-codes/")
    form = {"current_password": ada.password, "code": phone.code()}
    await client.post(f"{PAGE}disable/", form=form)
    state = app.extensions["quart_upsun"]
    async with database.read() as session:
        jobs = (await session.scalars(select(Job).where(Job.entrypoint == "mail"))).all()
    assert len(jobs) == 3
    for name in state.mail.composers:
        if name.startswith(("two-factor", "recovery-code")):
            async with app.app_context(), database.read() as session:
                data = {"to": ada.email, "username": ada.username, "count": 3, "by_operator": True}
                letter = await state.mail.composers[name](session, data)
            assert letter is not None
            assert letter.to == ada.email


async def test_export_lists_the_factor_without_secrets(
    client: Client, ada: Person, phone: Authenticator
) -> None:
    body = await (await client.get("/account/data.json")).get_data(as_text=True)
    (found,) = json.loads(body)["two_factor"]
    assert found["recovery_codes_left"] == 10
    assert found["enabled_at"].startswith("20")
    assert phone.secret not in body


async def test_account_page_links_to_two_factor(client: Client, ada: Person) -> None:
    assert f'href="{PAGE}"' in await (await client.get("/account/")).get_data(as_text=True)


async def test_previous_keys_decrypt_and_reencryption_retires_them(
    app: Quart, client: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    old = app.config["ENCRYPTION_KEYS"]
    app.config["ENCRYPTION_KEYS"] = ["a new key", *old]
    browser = new_client(app)
    await submit_password(browser, ada)
    assert (await browser.post(CODE_PAGE, form={"code": phone.code()})).status_code == 303
    # That use has encrypted the secret with the new key.
    app.config["ENCRYPTION_KEYS"] = ["a newer key", "a new key"]
    async with app.app_context(), database.write() as session:
        assert await enrolment.reencrypt_secrets(session) == (1, 0)
    app.config["ENCRYPTION_KEYS"] = ["a newer key"]
    browser = new_client(app)
    await submit_password(browser, ada)
    assert (await browser.post(CODE_PAGE, form={"code": phone.next_code()})).status_code == 303


async def test_recovery_codes_work_if_the_key_is_lost(
    app: Quart, client: Client, ada: Person, phone: Authenticator
) -> None:
    app.config["ENCRYPTION_KEYS"] = ["another key"]
    browser = new_client(app)
    await submit_password(browser, ada)
    assert (await browser.post(CODE_PAGE, form={"code": phone.code()})).status_code == 200
    response = await browser.post("/login/recovery-code/", form={"code": phone.recovery_codes[0]})
    assert response.status_code == 303


async def test_a_secret_copied_to_another_user_is_useless(
    app: Quart, client: Client, ada: Person, phone: Authenticator, clock: Clock, database: Database
) -> None:
    """An attacker who can write to the database but has no key cannot replace a factor."""
    grace, browser = await Person().register(app), new_client(app)
    await grace.log_in(browser)
    await enrol(browser, clock)
    async with database.write() as session:
        await session.execute(
            text(
                "UPDATE two_factor_secrets SET secret = (SELECT secret FROM two_factor_secrets"
                " WHERE user_id = :ada) WHERE user_id = :grace"
            ),
            {"ada": ada.id, "grace": grace.id},
        )
    await submit_password(browser, grace)
    assert (await browser.post(CODE_PAGE, form={"code": phone.code()})).status_code == 200


def test_operator_turns_it_off_by_command(settings: Settings) -> None:
    async def prepare() -> tuple[Person, list[str]]:
        app = create_app(settings)
        async with app.test_app():
            person, client = await Person().register(app), new_client(app)
            await person.log_in(client)
            await enrol(client, Clock())
            return person, []

    person, _ = asyncio.run(prepare())
    runner = CliRunner()

    def run(*arguments: str) -> tuple[int, str]:
        info = ScriptInfo(create_app=lambda: create_app(settings))
        result = runner.invoke(group, arguments, obj=info)
        return result.exit_code, result.output

    assert run("reencrypt-two-factor") == (0, "Encrypted 1 secrets with the current key.\n")
    assert run("disable-two-factor", person.username) == (
        0,
        f"{person.username} can now log in without a code.\n",
    )
    code, output = run("disable-two-factor", person.username)
    assert code == 1
    assert "has not turned on two-factor authentication" in output
    assert "does not exist" in run("disable-two-factor", "nobody")[1]

    async def check() -> None:
        app = create_app(settings)
        async with app.test_app():
            await log_in_without_code(new_client(app), person)

    asyncio.run(check())
