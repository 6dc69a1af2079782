"""Proofs of identity, which sensitive changes need ("sudo mode")."""

from datetime import timedelta

import pytest
from bs4 import BeautifulSoup, Tag
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from app.site import ProofMethod, get_site
from app.user.audit_trail import Event
from app.user.models import User, UserSession
from app.user.proofs import PROOF_SECONDS
from quart_upsun.database import Database
from quart_upsun.policy import policy_of
from quart_upsun.security import audit
from tests.features.factories import LOGIN_COOKIE, Person, cookies_of, new_client

NEW_EMAIL = {"email": "new@example.com"}


@pytest.fixture
async def outdated(database: Database, ada: Person) -> None:
    """The proof of the logged-in user is older than 15 minutes."""
    await outdate(database)


async def outdate(database: Database) -> None:
    async with database.write() as session:
        await session.execute(
            update(UserSession).values(proved_at=func.now() - timedelta(seconds=PROOF_SECONDS + 1))
        )


async def form_of(client: Client, path: str, **fields: str) -> Tag:
    """Post to a page and return the form of the page that asks for a proof."""
    response = await client.post(path, form=fields)
    assert response.status_code == 403
    assert response.headers["Cache-Control"] == "private, no-store"
    form = BeautifulSoup(await response.get_data(), "html.parser").select_one("#proofForm")
    assert form is not None
    return form


def hidden_fields(form: Tag) -> dict[str, str]:
    return {str(field["name"]): str(field["value"]) for field in form.select("input[type=hidden]")}


async def pending_email(database: Database, person: Person) -> str | None:
    async with database.read() as session:
        return await session.scalar(select(User.pending_email).where(User.id == person.id))


@pytest.mark.usefixtures("outdated")
async def test_form_carries_the_submitted_fields(
    database: Database, client: Client, ada: Person
) -> None:
    form = await form_of(client, "/account/email/", **NEW_EMAIL)
    assert (form["method"], form["action"]) == ("post", "/account/email/")
    assert hidden_fields(form) == NEW_EMAIL
    assert await pending_email(database, ada) is None
    proved = hidden_fields(form) | {"proof_password": ada.password}
    response = await client.post(str(form["action"]), form=proved)
    assert (response.status_code, response.location) == (303, "/account/")
    assert await pending_email(database, ada) == NEW_EMAIL["email"]
    # The proof holds for the next change, too.
    response = await client.post("/account/delete/")
    assert (response.status_code, response.location) == (303, "/")


@pytest.mark.usefixtures("outdated")
async def test_wrong_password_changes_nothing_and_is_audited(
    database: Database, client: Client, ada: Person
) -> None:
    fields = NEW_EMAIL | {"proof_password": "wrong password"}
    form = await form_of(client, "/account/email/", **fields)
    assert "That is not correct" in form.get_text()
    assert hidden_fields(form) == NEW_EMAIL
    assert await pending_email(database, ada) is None
    async with database.read() as session:
        (event,) = await audit.list_events(
            session, user_id=ada.id, kinds=[Event.PROOF_FAILED], limit=9
        )
    assert event.client == "<local>"


@pytest.mark.usefixtures("outdated")
async def test_attempts_are_limited(client: Client, ada: Person) -> None:
    wrong, right = ({"proof_password": each} for each in ("wrong password", ada.password))
    for _ in range(10):
        await form_of(client, "/account/email/", **NEW_EMAIL, **wrong)
    response = await client.post("/account/email/", form=NEW_EMAIL | right)
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0


@pytest.mark.usefixtures("outdated")
async def test_copied_cookie_ends_with_the_proof(app: Quart, client: Client, ada: Person) -> None:
    """A thief of the cookie must not get the rights of the proof."""
    thief = {"Cookie": f"{LOGIN_COOKIE}={cookies_of(client)[LOGIN_COOKIE]}"}
    assert (await new_client(app).get("/account/", headers=thief)).status_code == 200
    proved = NEW_EMAIL | {"proof_password": ada.password}
    assert (await client.post("/account/email/", form=proved)).status_code == 303
    assert (await new_client(app).get("/account/", headers=thief)).status_code == 303
    assert (await client.get("/account/")).status_code == 200


@pytest.mark.usefixtures("outdated")
async def test_new_passwords_are_not_written_into_the_page(
    client: Client, database: Database, ada: Person
) -> None:
    async with database.write() as session:
        await session.execute(update(User).values(password_hash=None))
    fields = {"password": "staple battery", "confirm": "staple battery"}
    response = await client.post("/account/password/", form=fields)
    assert response.status_code == 403
    page = await response.get_data(as_text=True)
    assert "staple" not in page
    assert "no password" in page


async def test_user_without_password_sets_one(
    app: Quart, client: Client, database: Database, ada: Person
) -> None:
    async with database.write() as session:
        await session.execute(update(User).values(password_hash=None))
    page = BeautifulSoup(await (await client.get("/account/")).get_data(), "html.parser")
    assert not page.select("[name=current_password]")
    fields = {"password": "staple battery", "confirm": "staple battery"}
    assert (await client.post("/account/password/", form=fields)).status_code == 303
    await Person(ada.username, password="staple battery").log_in(new_client(app))


async def test_user_without_password_cannot_log_in_with_one(
    client: Client, database: Database, ada: Person
) -> None:
    async with database.write() as session:
        await session.execute(update(User).values(password_hash=None))
    for password in ("", "None", "!", ada.password):
        response = await client.post("/login/", form=ada.login | {"password": password})
        assert response.status_code == 200


@pytest.mark.usefixtures("outdated")
async def test_current_password_is_enough_for_a_new_one(client: Client, ada: Person) -> None:
    fields = {"password": "staple battery", "confirm": "staple battery"}
    response = await client.post(
        "/account/password/", form=fields | {"current_password": ada.password}
    )
    assert (response.status_code, response.location) == (303, "/account/")


@pytest.mark.usefixtures("outdated")
async def test_page_for_a_get_returns_to_its_address(
    app: Quart, client: Client, ada: Person
) -> None:
    # What the page for a GET posts to.
    path = "/account/proof/?next=/links/?q%3Da"
    form = await form_of(client, path)
    proved = {"proof_password": ada.password}
    response = await client.post(str(form["action"]), form=proved)
    assert (response.status_code, response.location) == (303, "/links/?q=a")
    response = await client.post("/account/proof/?next=//evil.example/")
    assert response.location == "/account/"


@pytest.mark.usefixtures("outdated")
async def test_user_without_password_can_always_request_one(
    app: Quart, client: Client, database: Database, ada: Person
) -> None:
    """Also if there is a method: a passkey may be lost, a provider may not ask again."""
    async with database.write() as session:
        await session.execute(update(User).values(password_hash=None))

    async def is_available(session: object, user: User) -> bool:
        return True

    template = "user/proof_password.html"
    get_site(app).proof_methods.append(ProofMethod("code", is_available, template))
    page = await (await client.post("/account/delete/")).get_data()
    links = BeautifulSoup(page, "html.parser").select("main a[href='/forgot/']")
    assert len(links) == 1


def test_sensitive_views_need_a_proof(app: Quart) -> None:
    needs_proof = {name for name, view in app.view_functions.items() if policy_of(view).needs_proof}
    sensitive = {
        "account.change_email",
        "account.change_password",
        "account.delete",
        "account.end_other_sessions",
        "account.end_session",
        "account.sign_out_everywhere",
        "tokens.create",
        "tokens.delete",
    }
    assert needs_proof >= sensitive & set(app.view_functions)  # tokens are an optional feature
    administration = {
        rule.endpoint
        for rule in app.url_map.iter_rules()
        if policy_of(app.view_functions[rule.endpoint]).access == "admin"
        and "POST" in (rule.methods or set())
    }
    assert administration <= needs_proof
