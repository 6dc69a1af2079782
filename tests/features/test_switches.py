"""Maintenance and read-only mode, as visitors and administrators see them."""

import asyncio

import pytest
from click.testing import CliRunner
from quart import Quart
from quart.testing import QuartClient as Client

from quart_upsun.commands.switches import switch_group
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.switches import MAINTENANCE, READ_ONLY, Switches
from quart_upsun.testing.servers import eventually
from tests.features.factories import Person, new_client


@pytest.fixture
async def administrator(app: Quart) -> Person:
    return await Person("grace").register(app, administrator=True)


async def switch(app: Quart, database_url: str, name: str, *arguments: str) -> None:
    """Run a command of a switch, and wait until the application follows."""
    group = switch_group(parse_database_url(database_url), name)
    result = await asyncio.to_thread(CliRunner().invoke, group, arguments)
    assert result.exit_code == 0, result.output
    switches: Switches = app.extensions["quart_upsun"].switches
    wanted = arguments[0] == "on"
    await eventually(lambda: (name in switches.active) == wanted, "change")


async def text(client: Client, path: str, status: int = 200) -> str:
    page = await client.get(path)
    body: str = await page.get_data(as_text=True)
    assert page.status_code == status, (path, body)
    return body


async def test_administrators_log_in_and_work_during_maintenance(
    app: Quart, administrator: Person, ada: Person, client: Client, database_url: str
) -> None:
    await switch(app, database_url, MAINTENANCE, "on", "--message", "Moving house.")
    assert "Moving house." in await text(client, "/users/", 503)
    assert "Moving house." in await text(new_client(app), "/", 503)
    inside = new_client(app)
    assert 'id="loginForm"' in await text(inside, "/login/")
    await administrator.log_in(inside)
    assert "Moving house." in await text(inside, "/users/")  # the banner
    assert "Moving house." in await text(inside, "/account/")
    outside = new_client(app)
    await ada.log_in(outside)
    assert "Moving house." in await text(outside, "/users/", 503)
    assert (await outside.post("/logout/")).status_code == 303
    await switch(app, database_url, MAINTENANCE, "off")
    assert "Moving house." not in await text(inside, "/users/")
    assert await text(client, "/users/")


async def test_maintenance_is_shown_while_the_database_is_away(
    app: Quart, ada: Person, client: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cookie's user cannot be loaded, and the page still says what is going on."""
    await switch(app, database_url, MAINTENANCE, "on", "--message", "Moving house.")
    database = app.extensions["quart_upsun"].database
    nowhere = parse_database_url("postgresql://nobody@127.0.0.1:9/none")
    away = Database(nowhere, pool_size=1)
    monkeypatch.setattr(database, "direct", away.direct)
    assert "Moving house." in await text(client, "/users/", 503)
    await away.close()


async def test_users_log_in_and_read_in_read_only_mode(
    app: Quart, ada: Person, client: Client, administrator: Person, database_url: str
) -> None:
    await switch(app, database_url, READ_ONLY, "on", "--message", "No changes today.")
    assert "No changes today." in await text(client, "/users/")  # the banner
    assert "No changes today." not in await text(new_client(app), "/")  # a cacheable page
    refused = await client.post("/account/sign-out/")
    assert refused.status_code == 503
    assert "No changes today." in await refused.get_data(as_text=True)
    inside = new_client(app)
    await administrator.log_in(inside)
    assert (await inside.post("/account/sign-out/")).status_code == 503
    assert (await client.post("/logout/")).status_code == 303
