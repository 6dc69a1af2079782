"""An application without templates, assets, migrations and users. See also test_distribution.py."""

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from quart import Quart, abort

from embedded_postgres import create_database
from quart_upsun import api
from quart_upsun.database import create_schema
from quart_upsun.database.ownership import ForeignDatabaseError, Identity
from quart_upsun.database.url import parse_database_url
from quart_upsun.live import publish
from quart_upsun.live.history import StreamPosition, StreamStart, fetch_starts
from quart_upsun.settings import Settings
from quart_upsun.tests.small_app import create_app


@pytest.fixture
async def settings(server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)  # without migrations and assets
    url = await create_database(server_url, f"small_{secrets.token_hex(6)}")
    return Settings(
        database_url=parse_database_url(url),
        database_environment="tests",
        secret_key=SecretStr("a secret key for tests only"),
        run_jobs=False,
        flask_debug=True,
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    app = create_app(settings)
    async with app.test_app():
        yield app


async def test_errors_are_html_pages(app: Quart) -> None:
    @app.get("/teapot")
    async def teapot() -> str:
        abort(403)

    client = app.test_client()
    for path, status, title in [("/teapot", 403, "Forbidden"), ("/nowhere", 404, "Not Found")]:
        response = await client.get(path)
        assert response.status_code == status
        page = await response.get_data(as_text=True)
        assert page.startswith("<!doctype html>")
        assert f"<title>{title} · Quart application</title>" in page


async def test_api_docs_work_without_assets(settings: Settings) -> None:
    app = create_app(settings)
    api.init_app(app)
    client = app.test_client()
    page = await (await client.get("/docs")).get_data(as_text=True)
    assert 'href="/openapi.json"' in page
    assert "<script" not in page
    document = json.loads(await (await client.get("/openapi.json")).get_data())
    assert document["info"]["title"] == "Quart application"


async def test_development_mailbox_is_shown(app: Quart) -> None:
    response = await app.test_client().get("/dev/mail/")
    assert response.status_code == 200
    assert "No emails yet." in await response.get_data(as_text=True)


async def test_live_events_work_without_a_users_table(app: Quart, settings: Settings) -> None:
    # In a subprocess, because other tests may have loaded an application's models here.
    url = settings.database_url.render_as_string(hide_password=False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quart_upsun.tests.small_app", "create-schema"),
        env={
            **os.environ,
            "DATABASE_URL": url,
            "DATABASE_ENVIRONMENT": "tests",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    assert await process.wait() == 0
    async with app.extensions["quart_upsun"].database.write() as session:
        assert await fetch_starts(session, [StreamPosition(1, 0)]) == [StreamStart(0, [])]
        await publish(session, 1, "news")
        positions = [StreamPosition(1, 0), StreamPosition(1, 0, is_new=True)]
        known, new = [start.missed for start in await fetch_starts(session, positions)]
    assert known is None
    assert [event.kind for event in new or []] == ["news"]


async def test_create_schema_rejects_a_database_of_another_environment(settings: Settings) -> None:
    await create_schema(settings.database_url, settings.identity)
    with pytest.raises(ForeignDatabaseError):
        await create_schema(settings.database_url, Identity("other", "local"))
