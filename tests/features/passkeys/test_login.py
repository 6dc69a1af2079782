"""Log in with a passkey, and the responses that are refused."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import delete, func, select, update

from app.user import accounts
from app.user.audit_trail import Event
from app.user.passkeys import challenges
from app.user.passkeys.models import Passkey, UsedChallenge
from quart_upsun.database import Database
from quart_upsun.jobs.queue import enqueue
from quart_upsun.security.models import RateLimit
from quart_upsun.testing import runner_of
from tests.features.factories import LOGIN_COOKIE, Person, cookies_of, new_client
from tests.features.passkeys.authenticator import Authenticator, encode
from tests.features.passkeys.steps import (
    LOGIN,
    PAGE,
    add_passkey,
    ask,
    events_of,
    is_logged_in,
    log_in,
    send,
    stored,
)


async def test_login_without_username(app: Quart, ada: Person, laptop: Authenticator) -> None:
    stranger = new_client(app)
    answer = await log_in(stranger, laptop)
    assert (answer.status, answer.location) == (303, "/users/")
    page = await (await stranger.get("/account/")).get_data(as_text=True)
    assert f'value="{ada.username}"' in page
    assert (await events_of(app, ada.id))[-1] == Event.LOGGED_IN
    (found,) = await stored(app)
    assert found.last_used_at is not None
    assert found.sign_count == 2


async def test_login_follows_next_and_remember(app: Quart, laptop: Authenticator) -> None:
    for remember, is_kept in (("y", True), ("", False)):
        stranger = new_client(app)
        asked = await ask(stranger, f"{LOGIN}options/")
        credential = laptop.get(asked["options"])
        answer = await send(
            stranger, f"{LOGIN}?next=/about/", credential, asked["token"], remember=remember
        )
        assert (answer.status, answer.location) == (303, "/about/")
        cookies = {cookie.name: cookie for cookie in stranger.cookie_jar or ()}
        assert (cookies[LOGIN_COOKIE].expires is not None) == is_kept


async def test_login_redirects_only_within_the_site(app: Quart, laptop: Authenticator) -> None:
    stranger = new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    path = f"{LOGIN}?next=https://evil.example/"
    answer = await send(stranger, path, laptop.get(asked["options"]), asked["token"])
    assert (answer.status, answer.location) == (303, "/users/")


async def test_synced_passkey_has_no_counter(app: Quart, client: Client, ada: Person) -> None:
    phone = Authenticator(counter=0)
    await add_passkey(client, phone)
    for _ in range(2):
        assert (await log_in(new_client(app), phone)).status == 303


def other_origin(laptop: Authenticator) -> dict[str, str]:
    laptop.origin = "https://evil.example"
    return {}


def other_port(laptop: Authenticator) -> dict[str, str]:
    laptop.origin = "http://localhost:8001"
    return {}


def address_instead_of_localhost(laptop: Authenticator) -> dict[str, str]:
    laptop.origin = "http://127.0.0.1:8000"
    return {}


def other_host(laptop: Authenticator) -> dict[str, str]:
    laptop.rp_id = "evil.example"
    return {}


def other_challenge(laptop: Authenticator) -> dict[str, str]:
    return {"challenge": "AAAA"}


def other_ceremony(laptop: Authenticator) -> dict[str, str]:
    return {"type": "webauthn.create"}


def no_user_verification(laptop: Authenticator) -> dict[str, str]:
    laptop.is_user_verified = False
    return {}


def other_key(laptop: Authenticator) -> dict[str, str]:
    laptop.key = ec.generate_private_key(ec.SECP256R1())
    return {}


def no_user_handle(laptop: Authenticator) -> dict[str, str]:
    laptop.handle = b""
    return {}


def other_user_handle(laptop: Authenticator) -> dict[str, str]:
    laptop.handle = b"x" * 32
    return {}


@pytest.mark.parametrize(
    "change",
    [
        other_origin,
        other_port,
        address_instead_of_localhost,
        other_host,
        other_challenge,
        other_ceremony,
        no_user_verification,
        other_key,
        no_user_handle,
        other_user_handle,
    ],
)
async def test_login_refuses(
    app: Quart,
    ada: Person,
    laptop: Authenticator,
    change: Callable[[Authenticator], dict[str, str]],
) -> None:
    stranger = new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    client_data = change(laptop)
    answer = await send(
        stranger, LOGIN, laptop.get(asked["options"], **client_data), asked["token"]
    )
    assert answer.status == 403
    assert "This passkey could not be verified." in answer.text
    assert not await is_logged_in(stranger)
    assert (await events_of(app, ada.id))[-1] == Event.LOGIN_FAILED
    (found,) = await stored(app)
    assert found.last_used_at is None


@pytest.mark.parametrize("step", [0, -1])
async def test_login_refuses_a_counter_that_does_not_increase(
    app: Quart, ada: Person, laptop: Authenticator, step: int
) -> None:
    """An attacker has a copy of the key."""
    assert (await log_in(new_client(app), laptop)).status == 303
    laptop.counter += step - 1
    stranger = new_client(app)
    answer = await log_in(stranger, laptop)
    assert answer.status == 403
    assert "a copy of it may be in use" in answer.text
    assert not await is_logged_in(stranger)
    assert (await events_of(app, ada.id))[-1] == Event.PASSKEY_REFUSED
    (found,) = await stored(app)
    assert found.sign_count == 2


async def test_counter_is_compared_only_if_the_signature_is_right(
    app: Quart, ada: Person, laptop: Authenticator
) -> None:
    """Otherwise anyone could make it look as if the key was copied."""
    laptop.counter = 1
    other_key(laptop)
    assert (await log_in(new_client(app), laptop)).status == 403
    events = await events_of(app, ada.id)
    assert events[-1] == Event.LOGIN_FAILED
    assert Event.PASSKEY_REFUSED not in events


async def test_login_refuses_a_replayed_response(app: Quart, client: Client, ada: Person) -> None:
    phone = Authenticator(counter=0)  # the counter would refuse it, too
    await add_passkey(client, phone)
    stranger = new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    credential = phone.get(asked["options"])
    assert (await send(stranger, LOGIN, credential, asked["token"])).status == 303
    await stranger.post("/logout/")
    answer = await send(stranger, LOGIN, credential, asked["token"])
    assert answer.status == 403
    assert "This took too long" in answer.text
    assert not await is_logged_in(stranger)


async def test_login_uses_a_challenge_once_even_if_requests_are_concurrent(
    app: Quart, client: Client, ada: Person
) -> None:
    phone = Authenticator(counter=0)
    await add_passkey(client, phone)
    stranger = new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    credential = phone.get(asked["options"])
    answers = await asyncio.gather(
        *(send(stranger, LOGIN, credential, asked["token"]) for _ in range(5))
    )
    assert sorted(answer.status for answer in answers) == [303, 403, 403, 403, 403]


async def test_a_wrong_answer_uses_the_challenge(app: Quart, laptop: Authenticator) -> None:
    stranger = new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    right = laptop.get(asked["options"])
    wrong = laptop.get(asked["options"], challenge="AAAA")
    assert (await send(stranger, LOGIN, wrong, asked["token"])).status == 403
    assert "This took too long" in (await send(stranger, LOGIN, right, asked["token"])).text


async def test_login_refuses_an_expired_challenge(
    app: Quart, laptop: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    monkeypatch.setattr(challenges, "LIFETIME_SECONDS", -1)
    answer = await send(stranger, LOGIN, laptop.get(asked["options"]), asked["token"])
    assert answer.status == 403
    assert not await is_logged_in(stranger)


async def test_login_refuses_the_challenge_of_another_browser(
    app: Quart, laptop: Authenticator
) -> None:
    """Otherwise an attacker could log a victim in to the attacker's account."""
    stranger, other = new_client(app), new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    credential = laptop.get(asked["options"])
    assert (await send(other, LOGIN, credential, asked["token"])).status == 403
    await ask(other, f"{LOGIN}options/")  # with a cookie of its own
    assert (await send(other, LOGIN, credential, asked["token"])).status == 403
    assert (await send(stranger, LOGIN, credential, asked["token"])).status == 303


async def test_two_tabs_have_a_challenge_each(app: Quart, laptop: Authenticator) -> None:
    stranger = new_client(app)
    first = await ask(stranger, f"{LOGIN}options/")
    second = await ask(stranger, f"{LOGIN}options/")
    assert first["options"]["challenge"] != second["options"]["challenge"]
    answer = await send(stranger, LOGIN, laptop.get(first["options"]), first["token"])
    assert answer.status == 303


async def test_login_refuses_a_challenge_for_another_purpose(
    app: Quart, client: Client, laptop: Authenticator
) -> None:
    asked = await ask(client, f"{PAGE}proof/options/")
    await client.post("/logout/")
    answer = await send(client, LOGIN, laptop.get(asked["options"]), asked["token"])
    assert answer.status == 403
    assert not await is_logged_in(client)


async def test_login_refuses_a_forged_token(app: Quart, laptop: Authenticator) -> None:
    stranger = new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    for token in ("", "x", asked["token"][:-2], asked["token"] + "x"):
        answer = await send(stranger, LOGIN, laptop.get(asked["options"]), token)
        assert answer.status == 403
    assert not await is_logged_in(stranger)


async def test_login_refuses_a_removed_passkey(
    app: Quart, client: Client, laptop: Authenticator
) -> None:
    (found,) = await stored(app)
    assert (await client.post(f"{PAGE}{found.id}/delete/")).status_code == 303
    stranger = new_client(app)
    answer = await log_in(stranger, laptop)
    assert answer.status == 403
    assert "This passkey is not registered" in answer.text
    assert not await is_logged_in(stranger)


async def test_login_refuses_a_passkey_of_another_host(
    app: Quart, database: Database, laptop: Authenticator
) -> None:
    """Of the host that the site had before."""
    async with database.write() as session:
        await session.execute(update(Passkey).values(rp_id="www.example.com"))
    assert (await log_in(new_client(app), laptop)).status == 403


async def test_login_refuses_a_deactivated_user(
    app: Quart, database: Database, ada: Person, laptop: Authenticator
) -> None:
    async with database.write() as session:
        await accounts.deactivate_user(session, ada.id)
    stranger = new_client(app)
    answer = await log_in(stranger, laptop)
    assert answer.status == 403
    assert "This account is deactivated." in answer.text
    assert LOGIN_COOKIE not in cookies_of(stranger)
    assert (await events_of(app, ada.id))[-2:] == [Event.DEACTIVATED, Event.LOGIN_FAILED]


BAD_VALUES: list[Any] = [None, 1, [], {}, "", "!", "AAAA", "é", True, "A" * 5000]


async def test_malformed_responses_are_a_client_error(app: Quart, laptop: Authenticator) -> None:
    """Each member of a response with a wrong value: 400 or 403, never 500."""
    stranger = new_client(app)
    statuses = set()
    inner = ("clientDataJSON", "authenticatorData", "signature", "userHandle")
    outer = ("id", "rawId", "type", "response", "authenticatorAttachment")
    for path in [*([name] for name in outer), *(["response", name] for name in inner)]:
        for value in BAD_VALUES:
            await forget_limits(app)
            asked = await ask(stranger, f"{LOGIN}options/")
            credential = laptop.get(asked["options"])
            member = credential if len(path) == 1 else credential["response"]
            member[path[-1]] = value
            answer = await send(stranger, LOGIN, credential, asked["token"])
            if path == ["authenticatorAttachment"] and answer.status == 303:
                await stranger.post("/logout/")  # not used
                continue
            assert answer.status in {400, 403}, (path, value)
            statuses.add(answer.status)
    assert statuses == {400, 403}
    assert not await is_logged_in(stranger)


async def forget_limits(app: Quart) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(delete(RateLimit))


@pytest.mark.parametrize(
    "text",
    ["", "x", "null", "[]", "{}", '"x"', "NaN", "[" * 30_000, '{"id": "\\ud800"}', "9" * 5000],
)
async def test_other_json_is_a_bad_request(app: Quart, laptop: Authenticator, text: str) -> None:
    stranger = new_client(app)
    asked = await ask(stranger, f"{LOGIN}options/")
    assert (await send(stranger, LOGIN, text, asked["token"])).status == 400
    assert (await stranger.post(LOGIN)).status_code == 400


async def test_client_data_of_any_shape_is_refused(app: Quart, laptop: Authenticator) -> None:
    stranger = new_client(app)
    for text in ("", "x", "[]", "{}", '{"type": 1, "challenge": 2, "origin": 3}', "[" * 9000):
        asked = await ask(stranger, f"{LOGIN}options/")
        credential = laptop.get(asked["options"])
        credential["response"]["clientDataJSON"] = encode(text.encode())
        assert (await send(stranger, LOGIN, credential, asked["token"])).status == 403


async def test_options_name_no_user_and_require_verification(
    app: Quart, laptop: Authenticator
) -> None:
    asked = await ask(new_client(app), f"{LOGIN}options/")
    options = asked["options"]
    assert options["rpId"] == "localhost"
    assert options["userVerification"] == "required"
    assert options["allowCredentials"] == []
    assert len(options["challenge"]) >= 43  # 32 bytes


async def test_opening_the_login_page_stores_nothing(app: Quart, database: Database) -> None:
    await ask(new_client(app), f"{LOGIN}options/")
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(UsedChallenge)) == 0


async def test_login_page_is_the_same_for_everybody(app: Quart, laptop: Authenticator) -> None:
    """A shared cache stores it: no challenge, and no cookie."""
    first, second = new_client(app), new_client(app)
    pages = [await client.get("/login/") for client in (first, second)]
    assert pages[0].headers["Cache-Control"] == "public, max-age=0, s-maxage=300"
    assert await pages[0].get_data() == await pages[1].get_data()
    assert not cookies_of(first)


async def test_used_challenges_are_deleted_once_they_have_expired(
    app: Quart, database: Database, laptop: Authenticator
) -> None:
    await log_in(new_client(app), laptop)
    count = select(func.count()).select_from(UsedChallenge)
    for age, left in ((4, 2), (11, 0)):  # those of the registration and of the login
        async with database.write() as session:
            used_at = func.now() - timedelta(minutes=age)
            await session.execute(update(UsedChallenge).values(used_at=used_at))
            await enqueue(session, challenges.CLEANUP.task)
        await runner_of(app, challenges.CLEANUP.task).run_due()
        async with database.read() as session:
            assert await session.scalar(count) == left
