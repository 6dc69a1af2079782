"""Page titles, which name the page and the site."""

from typing import Any

from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select

from app.settings import Settings
from app.user import emails
from app.user.models import User
from quart_upsun.database import Database
from tests.features.factories import Person, new_client
from tests.features.test_policy import FEATURES, path_of, routes


async def get_title(response: Any) -> str:
    soup = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
    (title,) = soup.select("head > title")
    return title.get_text()


async def test_titles_name_page_and_site_and_are_unique(
    app: Quart, client: Client, database: Database, settings: Settings
) -> None:
    """Requests every page as an anonymous user and as an administrator."""
    for feature in FEATURES:
        await feature.prepare(app)
    root = await Person().register(app, administrator=True)
    admin = new_client(app)
    await root.log_in(admin)

    titles: dict[str, str] = {}
    for rule, method in routes(app):
        if method != "GET" or rule.rule.endswith("/events/"):  # event streams do not end
            continue
        for visitor in (client, admin):
            path = path_of(rule)
            response = await visitor.get(path)
            if response.status_code == 200 and response.mimetype == "text/html":
                titles[path] = await get_title(response)
    assert {"/", "/login/", "/account/", "/users/"} <= titles.keys()

    # Pages that need a token, an unconfirmed account, or an error.
    unconfirmed = await Person().register(app, confirmed=False)
    member = new_client(app)
    await unconfirmed.log_in(member)
    async with database.read() as session:
        user = (await session.scalars(select(User).where(User.id == unconfirmed.id))).one()
    async with app.app_context():
        confirm_path = f"/confirm/{emails.create_confirm_token(user)}/"
        reset_path = f"/reset/{emails.create_reset_token(user)}/"
    for path, status in (
        (confirm_path, 200),
        (reset_path, 200),
        ("/reset/expired/", 410),
        ("/invite/", 403),
        ("/nowhere/", 404),
    ):
        response = await member.get(path)
        assert response.status_code == status, path
        titles[f"{path} {status}"] = await get_title(response)

    for path, title in titles.items():
        page, separator, site_name = title.rpartition(" · ")
        assert (bool(page.strip()), separator, site_name) == (True, " · ", settings.site_name), path
    assert len(set(titles.values())) == len(titles), titles


async def test_titles_of_invalid_forms_begin_with_error(app: Quart, client: Client) -> None:
    for path in ("/login/", "/register/", "/forgot/"):
        valid, invalid = await client.get(path), await client.post(path, form={})
        assert await get_title(invalid) == f"Error: {await get_title(valid)}"
