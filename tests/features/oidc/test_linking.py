"""Link and unlink logins on the account page, and confirm one's identity with a provider."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select, update

from app.site import SecondFactor
from app.user.models import User, UserSession
from app.user.oidc import linked_logins
from app.user.oidc.models import LinkedLogin
from quart_upsun.database import Database
from quart_upsun.jobs.models import Job
from quart_upsun.security.models import AuditEvent
from tests.features.factories import Person, new_client
from tests.features.oidc.conftest import ProviderProcess, begin, kind_of, log_in_with, visit

LINK = "/account/providers/mine/link/"
PROVE = "/account/providers/mine/prove/"


async def login_ids(database: Database) -> list[int]:
    async with database.read() as session:
        return list(await session.scalars(select(LinkedLogin.id).order_by(LinkedLogin.id)))


async def mails(database: Database) -> list[str]:
    """Return the names of the letters that wait to be sent."""
    async with database.read() as session:
        rows = await session.scalars(select(Job.payload).where(Job.entrypoint == "mail"))
        return [json.loads(row or b"{}")["kind"] for row in rows]


async def kinds(database: Database) -> list[str]:
    async with database.read() as session:
        return list(await session.scalars(select(AuditEvent.kind).order_by(AuditEvent.id)))


async def age_proof(database: Database) -> None:
    """Let the proofs of all sessions expire."""
    async with database.write() as session:
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        await session.execute(update(UserSession).values(proved_at=long_ago))


async def text_of(client: Client, path: str) -> str:
    return await (await client.get(path)).get_data(as_text=True)


async def test_owner_links_a_login(
    client: Client, app: Quart, database: Database, ada: Person, provider: ProviderProcess
) -> None:
    """The address at the provider need not be that of the account, nor verified."""
    provider.be("s-1", "elsewhere@example.org", verified=False)
    response = await log_in_with(client, LINK)
    assert (response.status_code, response.location) == (303, "/account/providers/")
    page = await text_of(client, "/account/providers/")
    assert "You can now log in with Mine." in page
    assert "elsewhere@example.org" in page
    assert await mails(database) == ["provider-linked"]
    assert (await kinds(database))[-1] == "login with a provider linked"
    again = new_client(app)
    assert (await log_in_with(again)).status_code == 303
    assert ada.username in await text_of(again, "/account/")
    async with database.read() as session:
        assert await session.scalar(select(User.email)) == ada.email


async def test_linking_twice_changes_nothing(
    client: Client, database: Database, ada: Person, provider: ProviderProcess
) -> None:
    await log_in_with(client, LINK)
    await log_in_with(client, LINK)
    assert len(await login_ids(database)) == 1
    assert "is already linked" in await text_of(client, "/account/providers/")


async def test_login_of_another_account_is_not_linked(
    client: Client, app: Quart, database: Database, ada: Person, provider: ProviderProcess
) -> None:
    provider.be("s-1", "other@example.com")
    await log_in_with(new_client(app))
    response = await log_in_with(client, LINK)
    assert (response.status_code, await kind_of(response)) == (409, "linked-elsewhere")
    assert len(await login_ids(database)) == 1


async def test_number_of_logins_is_limited(
    client: Client,
    database: Database,
    ada: Person,
    provider: ProviderProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linked_logins, "MAX_LINKED", 1)
    await log_in_with(client, LINK)
    provider.be("s-2", None)
    response = await log_in_with(client, LINK)
    assert (response.status_code, await kind_of(response)) == (409, "too-many")


async def test_linking_requires_the_same_session(
    client: Client, app: Quart, database: Database, ada: Person, provider: ProviderProcess
) -> None:
    path = await visit(await begin(client, LINK))
    await ada.log_in(client)  # a new session, as after another user logged in
    response = await client.get(path)
    assert (response.status_code, await kind_of(response)) == (403, "other-session")
    path = await visit(await begin(client, LINK))
    await client.post("/logout/")
    assert await kind_of(await client.get(path)) == "other-session"
    assert await login_ids(database) == []


async def test_linking_and_unlinking_require_a_proof(
    client: Client, database: Database, ada: Person, provider: ProviderProcess
) -> None:
    await log_in_with(client, LINK)
    (login,) = await login_ids(database)
    await age_proof(database)
    for path in (LINK, f"/account/providers/{login}/unlink/"):
        response = await client.post(path)
        assert response.status_code == 403
        assert "Confirm your identity" in await response.get_data(as_text=True)
    assert await login_ids(database) == [login]
    response = await client.post(
        f"/account/providers/{login}/unlink/", form={"proof_password": ada.password}
    )
    assert response.status_code == 303
    assert await login_ids(database) == []


async def test_unlinked_login_does_not_log_in(
    client: Client, app: Quart, database: Database, ada: Person, provider: ProviderProcess
) -> None:
    provider.be("s-1", ada.email)
    await log_in_with(client, LINK)
    (login,) = await login_ids(database)
    assert (await client.post(f"/account/providers/{login}/unlink/")).status_code == 303
    assert await mails(database) == ["provider-linked", "provider-unlinked"]
    assert (await kinds(database))[-1] == "login with a provider unlinked"
    assert await kind_of(await log_in_with(new_client(app))) == "taken"


async def test_login_of_another_user_cannot_be_unlinked(
    client: Client, app: Quart, database: Database, ada: Person, provider: ProviderProcess
) -> None:
    provider.be("s-1", "other@example.com")
    await log_in_with(new_client(app))
    (login,) = await login_ids(database)
    assert (await client.post(f"/account/providers/{login}/unlink/")).status_code == 404
    assert await login_ids(database) == [login]


async def test_last_way_to_log_in_is_not_removed(
    client: Client, database: Database, provider: ProviderProcess
) -> None:
    await log_in_with(client)
    (first,) = await login_ids(database)
    await client.post(f"/account/providers/{first}/unlink/")
    assert "your only way to log in" in await text_of(client, "/account/providers/")
    assert await login_ids(database) == [first]
    assert "provider-unlinked" not in await mails(database)
    # A second login is another way.
    provider.be("s-2", None)
    await log_in_with(client, LINK)
    await client.post(f"/account/providers/{first}/unlink/")
    (second,) = await login_ids(database)
    assert second != first
    # A login with a provider that is no longer configured does not count.
    async with database.write() as session:
        await session.execute(update(LinkedLogin).values(provider="gone"))
    provider.be("s-3", None)
    await log_in_with(client, LINK)
    _, third = await login_ids(database)
    await client.post(f"/account/providers/{third}/unlink/")
    assert await login_ids(database) == [second, third]


async def test_second_factor_is_asked_for_after_the_provider(
    client: Client, app: Quart, provider: ProviderProcess
) -> None:
    async def is_enabled(session: Any, user_id: int) -> bool:
        return True

    app.extensions["site"].second_factors.append(
        SecondFactor("test", "Test", "public.about", is_enabled)
    )
    response = await log_in_with(client, "/login/with/mine/?next=/account/")
    assert (response.status_code, response.location) == (303, "/about/")
    assert (await client.get("/users/")).status_code == 303


async def test_user_without_password_proves_identity_with_the_provider(
    client: Client, database: Database, provider: ProviderProcess
) -> None:
    await log_in_with(client)
    await age_proof(database)
    response = await client.post(LINK)
    soup = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
    (button,) = soup.select("#proofForm button[formaction]")
    assert button.get_text() == "Confirm with Mine"
    url = await begin(client, str(button["formaction"]))
    assert "prompt=login" in url
    assert "max_age=0" in url
    response = await client.get(await visit(url))
    assert (response.status_code, response.location) == (303, "/account/")
    assert (await client.post(LINK)).status_code == 200


@pytest.mark.parametrize(
    "behavior",
    [
        {"auth_time": False},
        {"claims": {"auth_time": 1000}},
        {"claims": {"auth_time": "now"}},
        {"user": {"sub": "of someone else"}},
    ],
    ids=str,
)
async def test_login_that_is_old_or_of_someone_else_proves_nothing(
    client: Client, database: Database, provider: ProviderProcess, behavior: dict[str, Any]
) -> None:
    await log_in_with(client)
    await age_proof(database)
    provider.behave(**behavior)
    response = await log_in_with(client, PROVE)
    assert await kind_of(response) in {"not-proved", "rejected"}
    assert (await client.post(LINK)).status_code == 403


async def test_providers_that_do_not_say_when_cannot_prove(
    client: Client, database: Database, provider: ProviderProcess
) -> None:
    await log_in_with(client, "/login/with/other/")
    await age_proof(database)
    assert (await client.post("/account/providers/other/prove/")).status_code == 404
    page = await (await client.post(LINK)).get_data(as_text=True)
    assert "Confirm with" not in page
    assert "log in again" in page
    # A new login is a proof.
    await client.post("/logout/")
    await log_in_with(client, "/login/with/other/")
    assert (await client.post(LINK)).status_code == 200


async def test_export_has_the_linked_logins(
    client: Client, ada: Person, provider: ProviderProcess
) -> None:
    await log_in_with(client, LINK)
    data = json.loads(await text_of(client, "/account/data.json"))
    (login,) = data["linked_logins"]
    assert (login["provider"], login["subject"]) == ("mine", "subject-1")
    assert login["issuer"] == provider.origin


async def test_user_without_password_sets_one_on_the_account_page(
    client: Client, database: Database, provider: ProviderProcess
) -> None:
    await log_in_with(client)
    response = await client.get("/account/")
    page = await response.get_data(as_text=True)
    assert response.status_code == 200
    assert "Set password" in page
    # With a password, the login can be unlinked.
    password = {"password": "correct horse battery", "confirm": "correct horse battery"}
    assert (await client.post("/account/password/", form=password)).status_code == 303
    (login,) = await login_ids(database)
    assert (await client.post(f"/account/providers/{login}/unlink/")).status_code == 303
    assert await login_ids(database) == []


async def test_account_page_links_to_the_logins(client: Client, ada: Person) -> None:
    assert 'href="/account/providers/"' in await text_of(client, "/account/")


async def test_mail_says_what_to_do(
    client: Client, app: Quart, ada: Person, provider: ProviderProcess
) -> None:
    from app.user.oidc.emails import COMPOSERS

    data = {"to": ada.email, "username": ada.username, "provider": "Mine"}
    async with app.app_context():
        letter = await COMPOSERS["provider-linked"](None, data)  # type: ignore[arg-type]
    assert letter is not None
    assert letter.context["logins"] == "http://127.0.0.1:8000/account/providers/"
