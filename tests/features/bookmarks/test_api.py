"""Import and export with the JSON API."""

from json import loads

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select

from app.bookmarks import uploads
from app.bookmarks.jobs import IMPORT_TASK
from app.links.api import READ, WRITE
from quart_upsun.jobs.models import Job
from quart_upsun.policy import policy_of
from quart_upsun.testing import runner_of
from tests.features.api.resources import token_of
from tests.features.bookmarks.test_imports import bookmarks
from tests.features.factories import Person
from tests.features.links.test_api import EXAMPLE, LINKS, ApiResponse, Program


@pytest.fixture
async def ada(app: Quart, client: Client) -> Program:
    person = await Person("ada").register(app)
    return Program(client, await token_of(app, person, READ, WRITE))


@pytest.fixture
async def bob(app: Quart, client: Client) -> Program:
    person = await Person("bob").register(app)
    return Program(client, await token_of(app, person, READ, WRITE))


async def jobs(app: Quart) -> list[str]:
    async with app.extensions["quart_upsun"].database.read() as session:
        return list(await session.scalars(select(Job.entrypoint)))


async def test_read_only_token_cannot_import(app: Quart, client: Client) -> None:
    person = await Person("ada").register(app)
    reader = Program(client, await token_of(app, person, READ))
    answer = await reader("POST", f"{LINKS}/import")
    assert (answer.status, answer.body["scope"]) == (403, "links:write")


def test_exports_are_rate_limited(app: Quart) -> None:
    views = {rule.rule: app.view_functions[rule.endpoint] for rule in app.url_map.iter_rules()}
    for path in ("/links/export.<form>", "/api/v1/links/export"):
        assert policy_of(views[path]).limit, path


async def send(ada: Program, content: bytes, content_type: str = "text/html") -> ApiResponse:
    response = await ada.client.post(
        f"{LINKS}/import",
        data=content,
        headers={"X-API-Key": ada.token, "Content-Type": content_type},
    )
    return ApiResponse(response.status_code, response.headers, await response.get_json())


async def test_import_runs_in_a_job_and_reports_progress(
    app: Quart, ada: Program, bob: Program
) -> None:
    sent = await send(ada, bookmarks(3), "text/html; charset=utf-8")
    assert sent.status == 202, sent.body
    assert (sent.body["state"], sent.body["percent"]) == ("waiting", 0)
    where = sent.headers["Location"]
    assert where == f"{LINKS}/imports/{sent.body['id']}"
    assert (await send(ada, bookmarks(1))).status == 409
    await runner_of(app, IMPORT_TASK).run_due()
    done = await ada("GET", where)
    assert done.status == 200
    assert (done.body["state"], done.body["percent"], done.body["added"]) == ("done", 100, 3)
    assert (done.body["seen"], done.body["known"], done.body["refused"]) == (3, 0, 0)
    assert len((await ada("GET", LINKS)).body["items"]) == 3
    assert (await bob("GET", where)).status == 404


async def test_rejects_invalid_import_files(
    app: Quart, ada: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content_type in ("application/json", "application/octet-stream", "multipart/form-data"):
        assert (await send(ada, bookmarks(1), content_type)).status == 415
    assert (await send(ada, b"")).status == 422
    monkeypatch.setattr(uploads, "MAX_FILE_BYTES", 1000)
    assert (await send(ada, b"a" * 1001)).status == 413
    assert IMPORT_TASK.name not in await jobs(app)


async def test_export_formats(ada: Program) -> None:
    for number in range(3):
        await ada.save(f"{EXAMPLE}{number}", title=f"Title {number}")
    lines = (await ada("GET", f"{LINKS}/export")).body.splitlines()
    assert [loads(line)["title"] for line in lines] == ["Title 0", "Title 1", "Title 2"]
    csv = await ada("GET", f"{LINKS}/export?format=csv")
    assert csv.headers["Content-Type"].startswith("text/csv")
    assert csv.headers["Content-Disposition"].endswith('.csv"')
    assert csv.body.count("\r\n") == 4
    html = await ada("GET", f"{LINKS}/export?format=html")
    assert html.body.startswith("<!DOCTYPE NETSCAPE-Bookmark-file-1>")
    assert (await ada("GET", f"{LINKS}/export?format=pdf")).status == 422
    head = await ada("HEAD", f"{LINKS}/export")
    assert (head.status, head.body) == (200, "")
