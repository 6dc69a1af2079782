"""The site while its database is read-only or unreachable."""

import asyncio
from contextlib import suppress

import pytest
from quart import Quart
from sqlalchemy import URL

from app import create_app
from app.settings import Settings
from quart_upsun.database import Database, ReadOnlyDatabaseError
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.databases import set_read_only, writable_again
from tests.features.factories import Person


async def test_read_only_database_serves_reads(
    app: Quart,
    settings: Settings,
    database_url: str,
    application_url: URL,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("quart_upsun.database.session.READ_ONLY_INTERVAL_SECONDS", 0.0)
    database: Database = app.extensions["quart_upsun"].database
    person = Person()
    member = app.test_client()
    assert (await member.post("/register/", form=person.registration)).status_code == 303
    form = {"username": person.username, "password": person.password}
    assert (await member.post("/login/", form=form)).status_code == 303

    await set_read_only(database_url, "on")
    await asyncio.sleep(0)
    ready = await app.test_client().get("/readyz")
    assert ready.status_code == 200
    assert await ready.get_json() == {"status": "ready", "database": "read-only"}
    # The download is rate limited, and still works while writes fail.
    for path in ("/users/", "/account/", "/account/data.json"):
        assert (await member.get(path)).status_code == 200, path
    for path in ("/login/", "/logout/", "/register/", "/account/sign-out/"):
        refused = await member.post(path, form=form)
        assert refused.status_code == 503, path
        assert int(refused.headers["Retry-After"]) > 0
    with pytest.raises(ReadOnlyDatabaseError):
        await Person("ada").create(database)
    assert "Traceback" not in caplog.text

    if application_url == settings.direct_url:
        await writable_again(database_url)
    else:
        await set_read_only(database_url, "off")  # a pooler keeps its connections
    with suppress(ReadOnlyDatabaseError):  # from the pooled connection; the next one is new
        await Person("ada").create(database)
    await Person("bob").create(database)
    ready = await app.test_client().get("/readyz")
    assert await ready.get_json() == {"status": "ready"}
    assert (await member.post("/logout/")).status_code == 303


async def test_unreachable_database_returns_503(settings: Settings, unused_tcp_port: int) -> None:
    url = parse_database_url(f"postgresql://u:p@127.0.0.1:{unused_tcp_port}/d")
    app = create_app(settings.model_copy(update={"database_url": url, "database_direct_url": None}))
    async with app.test_app():
        client = app.test_client()
        assert (await client.get("/")).status_code == 200
        page = await client.post("/login/", form={"username": "ada", "password": "some password"})
        assert page.status_code == 503
