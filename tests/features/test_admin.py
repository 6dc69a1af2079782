"""The administration pages: users, audit trail and stored emails."""

import pytest
from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import insert, text

from app.admin import views
from app.user import accounts
from app.user.models import User
from quart_upsun.mail.models import Mail
from tests.features.factories import Person, new_client

ADMIN_PAGES = ("/admin/", "/admin/audit/", "/admin/jobs/", "/admin/mail/")


@pytest.fixture
async def root(app: Quart, client: Client) -> Person:
    """An administrator who is logged in with `client`."""
    person = await Person(username="root").register(app, administrator=True)
    await person.log_in(client)
    return person


async def page(client: Client, path: str) -> BeautifulSoup:
    response = await client.get(path)
    assert response.status_code == 200
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def names(client: Client, path: str) -> list[str]:
    links = (await page(client, path)).select("tbody a[href^='/admin/users/']")
    return [link.get_text(strip=True) for link in links]


async def test_user_search_is_rate_limited(app: Quart, client: Client) -> None:
    root = await Person().register(app, administrator=True)
    await root.log_in(client)
    assert (await client.get("/admin/?q=a")).status_code == 200
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(text("UPDATE rate_limits SET used_until = now() + interval '1 hour'"))
    assert (await client.get("/admin/?q=a")).status_code == 429
    assert (await client.get("/admin/")).status_code == 200


async def test_admin_pages_are_not_found_for_members(app: Quart, client: Client) -> None:
    ada = await Person().register(app)
    await ada.log_in(client)
    for path in (*ADMIN_PAGES, f"/admin/users/{ada.id}/"):
        assert (await client.get(path)).status_code == 404
    for path in ("deactivate", "reactivate", "end-sessions"):
        assert (await client.post(f"/admin/users/{ada.id}/{path}/")).status_code == 404
    assert "Administration" not in str(await page(client, "/"))


async def test_user_list_is_paginated(
    app: Quart, client: Client, root: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE_SIZE", 3)
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(
            insert(User),
            [
                {"username": f"many{n}", "email": f"{n}@example.com", "password_hash": "x"}
                for n in range(7)
            ],
        )
    found, path = [], "/admin/"
    while path:
        found.append(await names(client, path))
        older = (await page(client, path)).select_one("a[rel=next]")
        path = str(older["href"]) if older else ""
    assert found == [["many6", "many5", "many4"], ["many3", "many2", "many1"], ["many0", "root"]]


async def test_user_search_matches_prefixes(app: Quart, client: Client, root: Person) -> None:
    ada = await Person("Ada_1", "ada@example.com").register(app)
    await Person("AdaX1", "other@example.com").register(app)
    bob = await Person("bob", "Ada@elsewhere.test").register(app, confirmed=False)
    assert await names(client, "/admin/?q=aDa_") == [ada.username]
    assert await names(client, "/admin/?q=ada@e") == [bob.username, ada.username]
    assert await names(client, "/admin/?q=other%") == []
    for odd in (
        "q=%00",
        "q=" + "x" * 5000,
        "before=-1",
        "before=x",
        "before=" + "9" * 50,
        "before=" + "9" * 5000,
    ):
        assert (await client.get(f"/admin/?{odd}")).status_code == 200, odd


async def test_deactivation_ends_sessions_and_blocks_login(
    app: Quart, client: Client, root: Person
) -> None:
    ada = await Person().register(app)
    hers = new_client(app)
    await ada.log_in(hers)
    path = f"/admin/users/{ada.id}/"
    assert (await client.post(f"{path}deactivate/")).status_code == 303
    assert (await hers.get("/users/")).status_code == 303
    response = await hers.post("/login/", form=ada.login)
    assert "This account is deactivated" in await response.get_data(as_text=True)
    response = await hers.post("/login/", form=ada.login | {"password": "wrong password"})
    assert "deactivated" not in await response.get_data(as_text=True)
    assert "by an administrator" in str(await page(client, path))

    assert (await client.post(f"{path}reactivate/")).status_code == 303
    await ada.log_in(hers)
    assert (await client.post(f"{path}end-sessions/")).status_code == 303
    assert (await hers.get("/users/")).status_code == 303
    trail = (await page(client, "/admin/audit/")).get_text()
    for event in ("Deactivated by user", "Reactivated by user", "All sessions ended by user"):
        assert event in trail


async def test_administrator_cannot_deactivate_themselves(client: Client, root: Person) -> None:
    path = f"/admin/users/{root.id}/"
    assert (await client.post(f"{path}deactivate/")).status_code == 303
    assert "cannot deactivate your own account" in str(await page(client, path))


async def test_unknown_ids_are_not_found(client: Client, root: Person) -> None:
    for number in (0, 12345, 2**63, 10**40):
        assert (await client.get(f"/admin/users/{number}/")).status_code == 404
        assert (await client.post(f"/admin/users/{number}/deactivate/")).status_code == 404
        for change in ("again", "remove"):
            assert (await client.post(f"/admin/jobs/{number}/{change}/")).status_code == 404


async def test_stored_emails_are_listed(app: Quart, client: Client, root: Person) -> None:
    message = "Subject: Hello\n\nWelcome, <Ada>.\n"
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(insert(Mail).values(kind="confirm", message=message))
    article = (await page(client, "/admin/mail/")).select_one("main article")
    assert article is not None
    assert "confirm #" in article.get_text()
    assert "Welcome, <Ada>." in article.get_text()


async def test_empty_lists_show_the_next_step(app: Quart, client: Client, root: Person) -> None:
    no_results = await page(client, "/admin/?q=unknown")
    assert no_results.select("tbody td a[href='/admin/']")
    for path in ("/admin/jobs/", "/admin/mail/"):
        assert not (await page(client, path)).select("main article")
        assert (await page(client, path)).select_one("main p")
    member = new_client(app)
    await (await Person().register(app, confirmed=False)).log_in(member)
    async with app.extensions["quart_upsun"].database.write() as session:
        await accounts.deactivate_user(session, root.id)
    members = await page(member, "/users/")
    assert members.select("tbody td a[href='/account/']")
