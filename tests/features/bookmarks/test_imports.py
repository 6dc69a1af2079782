"""Import of bookmark files: uploads, and jobs that import each link exactly once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import delete, func, select, text, update
from werkzeug.exceptions import RequestEntityTooLarge

from app.bookmarks import jobs, uploads
from app.bookmarks.jobs import BATCH_SIZE, IMPORT_TASK, ImportProgress
from app.bookmarks.models import Import, ImportChunk
from app.links import queries
from app.links.hooks import metadata_requested
from app.links.models import Link
from app.user.models import User
from quart_upsun.database import Database
from quart_upsun.jobs import runner as runner_module
from quart_upsun.jobs.models import Job
from quart_upsun.jobs.queue import JobTakenOverError, Task, enqueue
from quart_upsun.testing import runner_of
from quart_upsun.testing.runners import working
from tests.features.factories import Person
from tests.features.links.announcements import Announcement


def bookmarks(count: int, name: str = "n") -> bytes:
    return b"<DL><p>\n" + b"".join(
        b'<DT><A HREF="https://example.com/%s/%d" ADD_DATE="1700000000" TAGS="a,b">Title %d</A>\n'
        % (name.encode(), number, number)
        for number in range(count)
    )


async def chunks(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


class Library:
    """A user who imports bookmarks, and a job runner."""

    def __init__(self, app: Quart, user_id: int) -> None:
        self.app, self.user_id = app, user_id
        self.database: Database = app.extensions["quart_upsun"].database

    async def send(self, content: bytes) -> int:
        return await uploads.receive_upload(self.database, self.user_id, chunks(content))

    async def do(self, task: Task = IMPORT_TASK) -> None:
        await runner_of(self.app, task).run_due()

    async def progress(self, import_id: int) -> ImportProgress:
        async with self.database.read() as session:
            found = await jobs.get_import(session, self.user_id, import_id)
        assert found is not None
        return found

    async def count(self, model: Any, *where: Any) -> int:
        async with self.database.read() as session:
            return await session.scalar(select(func.count()).select_from(model).where(*where)) or 0

    async def make_due(self) -> None:
        async with self.database.write() as session:
            await session.execute(update(Job).values(execute_after=text("now()")))


@pytest.fixture
def library(app: Quart, ada: Person) -> Library:
    return Library(app, ada.id)


async def post(client: Client, content: bytes, field: str = "file") -> Any:
    # Built by hand, because the test client encodes files slowly.
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="bookmarks.html"'
    body = b"--edge\r\n%s\r\n\r\n%s\r\n--edge--\r\n" % (disposition.encode(), content)
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    return await client.post("/links/import/", data=body, headers=headers)


async def soup(client: Client) -> BeautifulSoup:
    response = await client.get("/links/import/")
    assert response.status_code == 200
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def test_import_creates_links(
    client: Client, library: Library, announced: list[Announcement]
) -> None:
    content = bookmarks(3) + b'<DT><A HREF="javascript:x">no</A><A HREF="https://example.com/n/1">'
    response = await post(client, content)
    assert (response.status_code, response.location) == (303, "/links/import/")
    page = await soup(client)
    assert page.select_one("progress[value='0']") is not None
    assert "waiting" in page.text
    await library.do()
    page = await soup(client)
    assert page.select("progress") == []
    assert "3 added, 1 already saved, 1 skipped" in " ".join(page.text.split())
    async with library.database.read() as session:
        links = await queries.list_links(session, library.user_id, limit=10)
    assert [each.title for each in links] == ["Title 2", "Title 1", "Title 0"]
    assert {each.created_at.timestamp() for each in links} == {1_700_000_000}
    assert {tuple(each.tags) for each in links} == {("a", "b")}
    assert [each.kind for each in announced] == ["import", "import"]
    assert announced[-1].data == {
        "id": announced[-1].data["id"],
        "state": "done",
        "seen": 5,
        "added": 3,
        "percent": 100,
    }
    assert await library.count(ImportChunk) == 0
    assert await library.count(Job, Job.entrypoint == IMPORT_TASK.name) == 0


async def test_repeated_import_adds_nothing(app: Quart, library: Library) -> None:
    other = await Person().register(app)
    async with library.database.write() as session:
        theirs, _ = await queries.save_link(
            session, other.id, "https://example.com/n/0", title="Theirs"
        )
        mine, _ = await queries.save_link(
            session, library.user_id, "https://example.com/n/1", title="Mine"
        )
    for added in (1199, 0):
        number = await library.send(bookmarks(1200))
        await library.do()
        done = await library.progress(number)
        assert (done.state, done.seen, done.added, done.refused) == ("done", 1200, added, 0)
        assert done.position == done.size == len(bookmarks(1200))
    async with library.database.read() as session:
        assert await queries.get_link(session, other.id, theirs.id) == theirs
        assert await queries.get_link(session, library.user_id, mine.id) == mine
    assert await library.count(Link, Link.user_id == other.id) == 1
    assert await library.count(Link) == 1201


@pytest.mark.parametrize(
    ("content", "error", "added"),
    [
        (b"%PDF-1.7 and so on", jobs.NO_LINKS, 0),
        (b"\x00" * 300_000, jobs.NO_LINKS, 0),
        (
            bookmarks(600) + b'<A HREF="' + b"x" * 2**21,
            "contains an unclosed tag or comment",
            600,
        ),
    ],
    ids=["pdf", "zeros", "unclosed tag"],
)
async def test_import_of_an_invalid_file_fails(
    client: Client, library: Library, content: bytes, error: str, added: int
) -> None:
    number = await library.send(content)
    await library.do()
    failed = await library.progress(number)
    assert failed.state == "failed"
    assert error in (failed.error or "")
    assert failed.added == added
    assert error in (await soup(client)).text
    assert await library.count(ImportChunk) == 0
    assert await library.count(Job, Job.entrypoint == IMPORT_TASK.name) == 0


async def test_import_stops_at_the_link_limit(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_LINKS", 700)
    number = await library.send(bookmarks(701))
    await library.do()
    done = await library.progress(number)
    assert (done.state, done.seen, done.added, done.warning) == (
        "done",
        700,
        700,
        jobs.TOO_MANY_LINKS,
    )


async def test_import_reports_losses(client: Client, library: Library) -> None:
    content = (
        b'<DL><DT><A HREF="https://example.com/1" TITLE="24" monitor">' + b"x" * 301 + b"</A>"
        b"<DD>" + b"n" * 1001 + bookmarks(600) + b'<DT><A HREF="https://example.com/2" TAGS="'
        b"%s" % b",".join(b"t%d" % number for number in range(21)) + b'">2</A><A HREF="https://exa'
    )
    number = await library.send(content)
    await library.do()
    done = await library.progress(number)
    assert (done.state, done.seen, done.added, done.error) == ("done", 602, 602, None)
    assert done.warning == (
        "1 title shortened to 300 characters; 1 note shortened to 1,000 characters;"
        " 1 link with changed or skipped tags (at most 20 of 40 letters, digits, - and _);"
        " 1 link with broken markup (check title, tags and note)."
        " The file ends inside a tag, title or comment, so links at its end may be missing."
    )
    assert done.warning in (await soup(client)).text


async def test_import_keeps_notes_and_requests_metadata(library: Library) -> None:
    received: list[tuple[list[int], bool]] = []

    async def receive(_: object, *, session: Any, link_ids: list[int], in_bulk: bool) -> None:
        received.append((link_ids, in_bulk))

    note = b'<DT><A HREF="https://example.com/n">n</A><DD>Mine\n'
    await library.send(note + b'<DT><A HREF="https://example.com/m">m</A>')
    with metadata_requested.connected_to(receive):
        await library.do()
    async with library.database.read() as session:
        rows = (
            await session.execute(
                select(Link.id, Link.description, Link.description_given).order_by(Link.id)
            )
        ).all()
    assert [row[1:] for row in rows] == [("Mine", True), ("", False)]
    assert received == [([row.id for row in rows], True)]


async def test_users_have_one_import_at_a_time(client: Client, library: Library) -> None:
    results = await asyncio.gather(
        *(library.send(bookmarks(1)) for _ in range(4)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in results) == [
        *["ImportInProgressError"] * 3,
        "int",
    ]
    response = await post(client, bookmarks(1))
    assert response.status_code == 409
    assert await library.count(Import) == 1
    await library.do()
    assert (await post(client, bookmarks(1))).status_code == 303


async def test_rejects_missing_or_empty_file(client: Client, library: Library) -> None:
    for response in (await post(client, b""), await post(client, b"x", field="other")):
        assert response.status_code == 200
        assert "Choose a bookmark file" in await response.get_data(as_text=True)
    for body in (
        b"",
        b"--b\r\n",
        b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\nhalf of it",
    ):
        response = await client.post(
            "/links/import/",
            data=body,
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
        assert response.status_code == 400
    assert await library.count(Import) == 0


async def test_rejects_file_that_is_too_large(client: Client, library: Library) -> None:
    with pytest.raises(RequestEntityTooLarge):
        await library.send(b"x" * (uploads.MAX_FILE_BYTES + 1))
    assert await library.count(Import) == await library.count(ImportChunk) == 0
    assert (await post(client, b"x" * (uploads.MAX_FILE_BYTES + 1))).status_code == 413
    assert await library.count(Import) == await library.count(ImportChunk) == 0
    assert (await post(client, b"x" * uploads.MAX_FILE_BYTES)).status_code == 303
    assert await library.count(ImportChunk) == uploads.MAX_FILE_BYTES // uploads.CHUNK_BYTES


async def test_aborted_upload_is_deleted(library: Library) -> None:
    half_sent = asyncio.Event()

    async def hang() -> AsyncIterator[bytes]:
        yield bookmarks(10_000)
        half_sent.set()
        await asyncio.sleep(60)

    sending = asyncio.create_task(uploads.receive_upload(library.database, library.user_id, hang()))
    await half_sent.wait()
    assert await library.count(ImportChunk) > 1
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert (
        await library.count(Import)
        == await library.count(ImportChunk)
        == await library.count(Job)
        == 0
    )


async def test_cleanup_deletes_stale_imports(library: Library) -> None:
    async def state(value: str, age: str) -> int:
        async with library.database.write() as session:
            row = Import(user_id=library.user_id, state=value, size=1)
            session.add(row)
            await session.flush()
            session.add(ImportChunk(import_id=row.id, number=0, content=b"x"))
            await session.flush()
            created = text(f"now() - interval '{age}'")
            await session.execute(
                update(Import).where(Import.id == row.id).values(created_at=created)
            )
            return row.id

    kept = [await state("receiving", "10 minutes"), await state("running", "23 hours")]
    gone = [await state("receiving", "16 minutes"), await state("done", "91 days")]
    failed = await state("running", "25 hours")
    async with library.database.write() as session:
        await enqueue(session, jobs.CLEANUP_TASK)
    await library.do(jobs.CLEANUP_TASK)
    async with library.database.read() as session:
        left = set(await session.scalars(select(Import.id)))
    assert left == {*kept, failed}
    assert not left & set(gone)
    assert (await library.progress(failed)).error == jobs.IMPORT_FAILED
    assert await library.count(ImportChunk) == 2


async def test_retry_resumes_after_the_last_committed_batch(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second batch fails before its commit."""
    content = bookmarks(4 * BATCH_SIZE + 7) + b'<A HREF="about:x">no</A>' * 3 + bookmarks(2)
    number = await library.send(content)
    original = jobs._insert_links
    written = 0

    async def failing(*args: Any) -> int:
        nonlocal written
        count = await original(*args)
        written += 1
        if written % 2 == 0:
            raise RuntimeError("the worker dies before the commit")
        return count

    monkeypatch.setattr(jobs, "_insert_links", failing)
    task = replace(IMPORT_TASK, backoff_seconds=(0.001,) * 20)
    for _ in range(20):
        await library.do(task)
        await library.make_due()
        if (await library.progress(number)).is_finished:
            break
    done = await library.progress(number)
    assert written > 5
    assert (done.state, done.seen, done.added, done.refused, done.known) == (
        "done",
        4 * BATCH_SIZE + 12,
        4 * BATCH_SIZE + 7,
        3,
        2,
    )
    assert await library.count(Link) == 4 * BATCH_SIZE + 7


async def test_import_resumes_after_a_worker_shutdown(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "SHUTDOWN_SECONDS", 0.0)
    number = await library.send(bookmarks(6 * BATCH_SIZE))
    original, begun = jobs._insert_links, asyncio.Event()
    count = 0

    async def slow(*args: Any) -> int:
        nonlocal count
        count += 1
        if count == 3:
            begun.set()
            await asyncio.sleep(60)
        return await original(*args)

    monkeypatch.setattr(jobs, "_insert_links", slow)
    async with working(runner_of(library.app, IMPORT_TASK)):
        await begun.wait()
    half = await library.progress(number)
    assert (half.state, half.seen, half.added) == ("running", 2 * BATCH_SIZE, 2 * BATCH_SIZE)
    async with library.database.read() as session:
        job = select(Job.status, Job.attempts).where(Job.entrypoint == IMPORT_TASK.name)
        assert (await session.execute(job)).all() == [("queued", 0)]
    await library.do()
    done = await library.progress(number)
    assert (done.state, done.seen, done.added) == ("done", 6 * BATCH_SIZE, 6 * BATCH_SIZE)


async def test_losses_are_counted_across_attempts(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = b'<DT><A HREF="https://example.com/%d">' + b"x" * 301 + b"</A>"
    number = await library.send(long % 1 + bookmarks(BATCH_SIZE) + long % 2)
    original = jobs._insert_links
    calls = 0

    async def failing(*args: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the worker dies after the first batch")
        return await original(*args)

    monkeypatch.setattr(jobs, "_insert_links", failing)
    task = replace(IMPORT_TASK, backoff_seconds=(0.001,))
    await library.do(task)
    await library.make_due()
    await library.do(task)
    assert calls == 3
    done = await library.progress(number)
    assert (done.state, done.seen) == ("done", BATCH_SIZE + 2)
    assert done.warning == "2 titles shortened to 300 characters."


async def test_worker_stops_after_losing_its_job(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has taken over the job while this one is running."""
    number = await library.send(bookmarks(4 * BATCH_SIZE))
    original = jobs._insert_links
    calls: list[int] = []
    raised: list[type[BaseException]] = []

    async def taken(*args: Any) -> int:
        added = await original(*args)
        calls.append(added)
        if len(calls) == 2:
            async with library.database.write() as session:
                await session.execute(
                    update(Job).values(queue_manager_id="00000000-0000-0000-0000-000000000001")
                )
        return added

    async def run(running: Any) -> None:
        try:
            await jobs.import_file(running)
        except BaseException as error:
            raised.append(type(error))
            raise

    monkeypatch.setattr(jobs, "_insert_links", taken)
    task = replace(IMPORT_TASK, run=run)
    doing = asyncio.create_task(library.do(task))
    async with asyncio.timeout(20):
        while not raised:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    assert raised == [JobTakenOverError]
    # The second batch checked before the job was taken over, so it is committed; the third is not.
    half = await library.progress(number)
    assert (half.state, half.seen, len(calls)) == ("running", 2 * BATCH_SIZE, 2)
    assert await library.count(Link) == 2 * BATCH_SIZE


async def test_import_fails_after_the_last_retry(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any) -> int:
        raise RuntimeError

    monkeypatch.setattr(jobs, "_insert_links", broken)
    number = await library.send(bookmarks(3))
    await library.do(replace(IMPORT_TASK, backoff_seconds=()))
    failed = await library.progress(number)
    assert (failed.state, failed.error) == ("failed", jobs.IMPORT_FAILED)
    assert await library.count(ImportChunk) == 0


async def test_imports_of_other_users_are_not_shown(
    app: Quart, client: Client, library: Library
) -> None:
    other = Library(app, (await Person().register(app)).id)
    number = await other.send(bookmarks(1))
    assert (await soup(client)).select("#imports section") == []
    async with library.database.read() as session:
        assert await jobs.get_import(session, library.user_id, number) is None


async def test_upload_ends_when_the_account_is_deleted(app: Quart) -> None:
    library = Library(app, (await Person().register(app)).id)

    async def arriving() -> AsyncIterator[bytes]:
        yield b"x" * uploads.CHUNK_BYTES
        async with library.database.write() as session:
            await session.execute(delete(User).where(User.id == library.user_id))
        yield b"x"

    with pytest.raises(uploads.AccountDeletedError):
        await uploads.receive_upload(library.database, library.user_id, arriving())
    with pytest.raises(uploads.AccountDeletedError):
        await uploads.receive_upload(library.database, library.user_id, chunks(b"x"))


@pytest.mark.parametrize("batch", [2, 500])
@pytest.mark.parametrize(("most", "added"), [(3, 0), (4, 1), (13, 10)])
async def test_existing_links_do_not_count_towards_the_limit(
    library: Library, monkeypatch: pytest.MonkeyPatch, batch: int, most: int, added: int
) -> None:
    """The file has the three links that the user already has, and ten new ones."""
    monkeypatch.setattr(queries, "MAX_LINKS", most)
    monkeypatch.setattr(jobs, "BATCH_SIZE", batch)
    async with library.database.write() as session:
        for number in range(3):
            await queries.save_link(session, library.user_id, f"https://example.com/n/{number}")
    import_id = await library.send(bookmarks(13))
    await library.do()
    progress = await library.progress(import_id)
    assert (progress.state, progress.added, progress.known) == ("done", added, 3)
    assert progress.refused == 10 - added
    assert (jobs.ACCOUNT_FULL in (progress.warning or "")) is (added < 10)
    assert await library.count(Link) == 3 + added
