"""A passkey after the password, and as a proof of identity."""

import json
from datetime import timedelta

import pytest
from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from app.site import SecondFactor, get_site
from app.user.audit_trail import Event
from app.user.models import UserSession
from quart_upsun.database import Database
from quart_upsun.jobs.models import Job
from tests.features.factories import LOGIN_COOKIE, Person, cookies_of, new_client
from tests.features.passkeys.authenticator import Authenticator
from tests.features.passkeys.steps import (
    LOGIN,
    PAGE,
    Answer,
    add_passkey,
    ask,
    events_of,
    is_logged_in,
    log_in,
    send,
    stored,
)

SECOND = f"{LOGIN}second/"


@pytest.fixture
async def required(client: Client, laptop: Authenticator) -> Authenticator:
    """Ada's passkey, which is required after the password."""
    response = await client.post(f"{PAGE}required/", form={"required": "yes"})
    assert response.status_code == 303
    return laptop


async def enter_password(client: Client, person: Person, path: str = "/login/") -> None:
    response = await client.post(path, form={**person.login, "remember": "y"})
    assert (response.status_code, response.location) == (303, SECOND)
    assert LOGIN_COOKIE not in cookies_of(client)


async def answer_second(client: Client, authenticator: Authenticator) -> Answer:
    asked = await ask(client, f"{SECOND}options/")
    return await send(client, SECOND, authenticator.get(asked["options"]), asked["token"])


async def test_password_is_enough_unless_the_user_requires_a_passkey(
    app: Quart, ada: Person, laptop: Authenticator
) -> None:
    """A passkey that a user has tried out does not lock them out on another device."""
    stranger = new_client(app)
    await ada.log_in(stranger)
    assert await is_logged_in(stranger)


async def test_passkey_after_the_password(app: Quart, ada: Person, required: Authenticator) -> None:
    stranger = new_client(app)
    await enter_password(stranger, ada, "/login/?next=/about/")
    assert not await is_logged_in(stranger)
    page = await (await stranger.get(SECOND)).get_data(as_text=True)
    assert "Use a passkey" in page
    asked = await ask(stranger, f"{SECOND}options/")
    (allowed,) = asked["options"]["allowCredentials"]
    assert sorted(allowed["transports"]) == ["hybrid", "internal"]
    events = await events_of(app, ada.id)
    answer = await send(stranger, SECOND, required.get(asked["options"]), asked["token"])
    assert (answer.status, answer.location) == (303, "/about/")
    assert await is_logged_in(stranger)
    assert await events_of(app, ada.id) == [*events, Event.LOGGED_IN]
    assert (await stranger.get(SECOND)).location == "/login/"


async def test_a_passkey_alone_is_both_factors(
    app: Quart, ada: Person, required: Authenticator
) -> None:
    stranger = new_client(app)
    assert (await log_in(stranger, required)).location == "/users/"
    assert await is_logged_in(stranger)


@pytest.mark.parametrize("change", ["origin", "verification", "key of another user"])
async def test_second_factor_refuses(
    app: Quart, ada: Person, required: Authenticator, change: str
) -> None:
    if change == "origin":
        required.origin = "https://evil.example"
    elif change == "verification":
        required.is_user_verified = False
    else:
        other = new_client(app)
        await (await Person().register(app)).log_in(other)
        required = Authenticator()
        await add_passkey(other, required)
    stranger = new_client(app)
    await enter_password(stranger, ada)
    answer = await answer_second(stranger, required)
    assert answer.status == 403
    assert not await is_logged_in(stranger)
    assert (await events_of(app, ada.id))[-1] == Event.LOGIN_FAILED


async def test_second_factor_needs_a_pending_login(app: Quart, required: Authenticator) -> None:
    stranger = new_client(app)
    assert (await stranger.get(SECOND)).location == "/login/"
    assert (await stranger.post(f"{SECOND}options/")).status_code == 401
    asked = await ask(stranger, f"{LOGIN}options/")
    answer = await send(stranger, SECOND, required.get(asked["options"]), asked["token"])
    assert (answer.status, answer.location) == (303, "/login/")
    assert not await is_logged_in(stranger)


async def test_malformed_second_factor_is_a_bad_request(
    app: Quart, ada: Person, required: Authenticator
) -> None:
    stranger = new_client(app)
    await enter_password(stranger, ada)
    assert (await stranger.post(SECOND, form={"response": "{"})).status_code == 400


async def test_other_factors_are_offered(app: Quart, ada: Person, required: Authenticator) -> None:
    async def is_enabled(session: object, user_id: int) -> bool:
        return True

    get_site(app).second_factors.append(
        SecondFactor("code", "Use a code", "public.about", is_enabled)
    )
    stranger = new_client(app)
    await enter_password(stranger, ada)
    soup = BeautifulSoup(await (await stranger.get(SECOND)).get_data(as_text=True), "html.parser")
    links = [link.text for link in soup.select("main a")]
    assert "Use a code" in links


async def test_requirement_ends_with_the_last_passkey(
    app: Quart, client: Client, ada: Person, required: Authenticator
) -> None:
    (found,) = await stored(app)
    await client.post(f"{PAGE}{found.id}/delete/")
    await ada.log_in(new_client(app))
    await add_passkey(client, Authenticator())
    await ada.log_in(new_client(app))  # the new one is not required, either
    events = await events_of(app, ada.id)
    assert Event.PASSKEY_REQUIRED in events


@pytest.mark.parametrize("is_required", ["yes", "no"])
async def test_change_of_the_requirement_ends_other_sessions_and_is_mailed(
    app: Quart,
    client: Client,
    database: Database,
    ada: Person,
    laptop: Authenticator,
    is_required: str,
) -> None:
    """Otherwise a session or a trusted browser of an attacker would go around the new factor."""
    if is_required == "no":
        await client.post(f"{PAGE}required/", form={"required": "yes"})
    other = new_client(app)
    await log_in(other, laptop)
    await client.post(f"{PAGE}required/", form={"required": is_required})
    assert await is_logged_in(client)
    assert not await is_logged_in(other)
    await log_in(other, laptop)
    await client.post(f"{PAGE}required/", form={"required": is_required})  # no change
    assert await is_logged_in(other)
    async with database.read() as session:
        queued = (await session.scalars(select(Job.payload).order_by(Job.id))).all()
    letter = "passkey-required" if is_required == "yes" else "passkey-not-required"
    assert sum(f'"{letter}"'.encode() in (each or b"") for each in queued) == 1


async def test_requirement_needs_a_passkey(app: Quart, client: Client, ada: Person) -> None:
    await client.post(f"{PAGE}required/", form={"required": "yes"})
    assert "Add a passkey first." in await (await client.get(PAGE)).get_data(as_text=True)
    await ada.log_in(new_client(app))


async def test_requirement_is_switched_off(
    app: Quart, client: Client, ada: Person, required: Authenticator
) -> None:
    await client.post(f"{PAGE}required/", form={"required": "no"})
    assert (await events_of(app, ada.id))[-1] == Event.PASSKEY_NOT_REQUIRED
    await ada.log_in(new_client(app))


async def let_the_proof_expire(database: Database) -> None:
    async with database.write() as session:
        await session.execute(
            update(UserSession).values(proved_at=func.now() - timedelta(minutes=16))
        )


async def prove(client: Client, authenticator: Authenticator, path: str, **form: str) -> Answer:
    """Answer the page that asks for a proof, with a passkey."""
    asked = await ask(client, f"{PAGE}proof/options/")
    credential = authenticator.get(asked["options"])
    return await send_proof(client, path, credential, asked["token"], **form)


async def send_proof(
    client: Client, path: str, credential: object, token: str, **form: str
) -> Answer:
    fields = {"proof_passkey_response": json.dumps(credential), "proof_passkey_token": token}
    response = await client.post(path, form={**form, **fields})
    text = await response.get_data(as_text=True)
    return Answer(response.status_code, response.headers.get("Location"), text)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{PAGE}new/"),
        ("POST", f"{PAGE}options/"),
        ("POST", PAGE),
        ("POST", f"{PAGE}1/delete/"),
        ("POST", f"{PAGE}required/"),
    ],
)
async def test_changes_need_a_recent_proof(
    client: Client, database: Database, laptop: Authenticator, method: str, path: str
) -> None:
    await let_the_proof_expire(database)
    response = await client.open(path, method=method)
    assert response.status_code == 403
    page = await response.get_data(as_text=True)
    assert "Confirm your identity" in page
    assert f'data-options="{PAGE}proof/options/"' in page


async def test_passkey_proves_the_identity(
    app: Quart, client: Client, database: Database, laptop: Authenticator
) -> None:
    """The change that was asked for is made, and others need no proof for a while."""
    await let_the_proof_expire(database)
    answer = await prove(client, laptop, f"{PAGE}required/", required="yes")
    assert (answer.status, answer.location) == (303, PAGE)
    assert "also need a passkey" in await (await client.get(PAGE)).get_data(as_text=True)
    assert (await client.get(f"{PAGE}new/")).status_code == 200
    (found,) = await stored(app)
    assert found.last_used_at is not None


async def test_proof_refuses_a_passkey_of_another_user(
    app: Quart, client: Client, database: Database, laptop: Authenticator
) -> None:
    other, phone = new_client(app), Authenticator()
    await (await Person().register(app)).log_in(other)
    await add_passkey(other, phone)
    await let_the_proof_expire(database)
    assert (await prove(client, phone, f"{PAGE}required/", required="yes")).status == 403
    assert (await client.get(f"{PAGE}new/")).status_code == 403


async def test_proof_refuses_a_login_challenge_and_malformed_answers(
    client: Client, database: Database, laptop: Authenticator
) -> None:
    await let_the_proof_expire(database)
    asked = await ask(client, f"{LOGIN}options/")
    path = f"{PAGE}required/"
    credential = laptop.get(asked["options"])
    assert (await send_proof(client, path, credential, asked["token"])).status == 403
    assert (await send_proof(client, path, [], asked["token"])).status == 403
    assert (await client.get(f"{PAGE}new/")).status_code == 403
