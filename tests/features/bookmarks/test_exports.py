"""Export of links in three formats, complete and safe to open."""

import asyncio
import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import delete, select, text

from app.bookmarks import exports, uploads
from app.bookmarks.exports import FORMATS, stream_export
from app.bookmarks.jobs import IMPORT_TASK
from app.links import queries
from app.links.models import Link
from app.links.personal_data import ExportedLink
from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.policy import NO_STORE
from tests.features.bookmarks.test_imports import Library, chunks
from tests.features.factories import Person

FILL = text(
    """
    INSERT INTO links (user_id, url, title, tags)
    SELECT :user_id, 'https://example.com/' || number, 'Title ' || number, '{a,b}'
    FROM generate_series(CAST(:first AS int), :last) AS number
    """
)


async def fill(database: Database, person: Person, first: int, last: int) -> None:
    async with database.write() as session:
        await session.execute(FILL, {"user_id": person.id, "first": first, "last": last})


async def download(client: Client, form: str) -> str:
    response = await client.get(f"/links/export.{form}")
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == NO_STORE
    assert response.content_type == FORMATS[form].content_type
    name = f"links-{datetime.now(UTC):%Y-%m-%d}.{form}"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{name}"'
    content: str = await response.get_data(as_text=True)
    return content


async def test_export_is_complete_under_concurrent_changes(
    app: Quart, database: Database, ada: Person
) -> None:
    bob = await Person().register(app)
    await fill(database, ada, 1, 5000)
    await fill(database, bob, 1, 10)
    lines: list[str] = []
    added = 5000
    async for piece in stream_export(database, ada.id, FORMATS["jsonl"]):
        assert len(piece) < 500_000
        lines += piece.decode().splitlines()
        await fill(database, ada, added + 1, added + 10)
        async with database.write() as session:
            await session.execute(delete(Link).where(Link.url == f"https://example.com/{added}"))
        added += 10
        assert len(lines) < 7000
    urls = [json.loads(line)["url"] for line in lines]
    assert len(urls) == len(set(urls))
    assert urls[:4999] == [f"https://example.com/{number}" for number in range(1, 5000)]


@pytest.mark.parametrize("form", list(FORMATS))
async def test_export_holds_no_connection_between_batches(
    database: Database, ada: Person, form: str
) -> None:
    await fill(database, ada, 1, 1200)
    streams = [stream_export(database, ada.id, FORMATS[form]) for _ in range(30)]
    async with asyncio.timeout(20):
        for stream in streams:  # more than the pool has
            await anext(stream)
            await anext(stream)
        async with database.read() as session:
            assert await session.scalar(select(Link.id).limit(1))
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]


async def test_exported_bookmarks_can_be_imported(
    app: Quart, client: Client, database: Database, ada: Person
) -> None:
    notes = iter(["</DL><A HREF=https://evil.example/>", "One\nand & two\n\nlast", "", "क्\u200dष"])
    async with database.write() as session:
        for url, title, tags in (
            ("https://example.com/?a=1&b='", '"It\'s" <b>bold</b> &amp; more', ["b-c", "ä_"]),
            ("https://example.com/" + "x" * 1500, "", ["-"]),
            ("https://xn--bcher-kva.example/%C3%A4#/route", "</A><H3>f</H3><DL>", []),
            ("http://example.com:8080/", "x" * 300, [f"t{number:02}" for number in range(20)]),
        ):
            item, _ = await queries.save_link(session, ada.id, url, title=title, tags=tags)
            await queries.update_link(session, ada.id, item.id, description=next(notes))
        await session.execute(
            text("UPDATE links SET created_at = date_trunc('second', now()) - id * interval '1 h'")
        )
        await session.execute(text("UPDATE links SET archived = true WHERE id % 2 = 0"))
    content = await download(client, "html")
    library = Library(app, (await Person().register(app)).id)
    await uploads.receive_upload(database, library.user_id, chunks(content.encode()))
    await library.do(IMPORT_TASK)
    names = [
        *("url", "title", "tags", "created_at", "archived", "title_given"),
        *("description", "description_given"),
    ]
    columns = [getattr(Link, name) for name in names]
    async with database.read() as session:
        mine, theirs = [
            (
                await session.execute(
                    select(*columns).where(Link.user_id == user_id).order_by(Link.id)
                )
            ).all()
            for user_id in (ada.id, library.user_id)
        ]
    assert mine == theirs
    assert len(mine) == 4


async def test_csv(client: Client, database: Database, ada: Person) -> None:
    titles = ["=1+1", "+1", "-1", "@x", "\t=1", "a,b", 'a "b"', "a\nb", "ä", "'", ""]
    async with database.write() as session:
        for number, title in enumerate(titles):
            await queries.save_link(session, ada.id, f"https://e.example/{number}", title=title)
        await session.execute(text("UPDATE links SET tags = '{-a,b}', description = '=2'"))
    content = await download(client, "csv")
    assert content.startswith(
        "\ufeffid,url,title,description,tags,archived,created_at,updated_at\r\n"
    )
    rows = list(csv.DictReader(io.StringIO(content.removeprefix("\ufeff"), newline="")))
    assert [row["title"] for row in rows] == [
        *("'=1+1", "'+1", "'-1", "'@x", "'\t=1", "a,b", 'a "b"', "a\nb", "ä", "'", "")
    ]
    assert {(row["tags"], row["description"], row["archived"]) for row in rows} == {
        ("'-a b", "'=2", "false")
    }
    assert not any(
        cell.startswith(exports.FORMULA_PREFIXES) for row in rows for cell in row.values()
    )
    assert datetime.fromisoformat(rows[0]["created_at"]).tzinfo


async def test_jsonl(client: Client, database: Database, ada: Person) -> None:
    async with database.write() as session:
        item, _ = await queries.save_link(
            session, ada.id, "https://e.example/", title="ä\n\u2028", tags=["a", "b"]
        )
    (line,) = (await download(client, "jsonl")).removesuffix("\n").split("\n")
    found: dict[str, Any] = json.loads(line)
    assert list(found) == list(ExportedLink._fields)
    assert (found["id"], found["title"], found["tags"]) == (item.id, "ä\n\u2028", ["a", "b"])
    assert found["archived"] is False
    assert datetime.fromisoformat(found["created_at"]) == item.created_at


async def test_export_without_links(client: Client, ada: Person) -> None:
    assert await download(client, "jsonl") == ""
    assert len((await download(client, "csv")).splitlines()) == 1
    assert "<DT>" not in await download(client, "html")
    for form in ("xml", "htm", "html.html"):
        assert (await client.get(f"/links/export.{form}")).status_code == 404
    head = await client.head("/links/export.html")
    assert (head.status_code, await head.get_data()) == (200, b"")


async def test_export_is_aborted_when_the_database_fails(
    database: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, ada, 1, 1200)
    stream = stream_export(database, ada.id, FORMATS["html"])
    pieces = [await anext(stream), await anext(stream)]

    def away() -> None:
        raise DatabaseUnavailableError("no connection to the database")

    monkeypatch.setattr(database, "read", away)
    with pytest.raises(DatabaseUnavailableError):
        await anext(stream)
    assert not pieces[-1].decode().endswith(FORMATS["html"].footer)
