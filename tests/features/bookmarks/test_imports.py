"""Files of bookmarks: sent, kept in pieces, read by a job, exactly once."""

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
from quart_upsun.live.models import LiveEvent
from quart_upsun.testing import runner_of
from quart_upsun.testing.runners import working
from tests.features.factories import Person


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
    """A user who imports, and the job that does it."""

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
def shelf(app: Quart, ada: Person) -> Library:
    return Library(app, ada.id)


async def post(client: Client, content: bytes, field: str = "file") -> Any:
    # By hand: the test client takes its time for each byte of a file.
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="bookmarks.html"'
    body = b"--edge\r\n%s\r\n\r\n%s\r\n--edge--\r\n" % (disposition.encode(), content)
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    return await client.post("/links/import/", data=body, headers=headers)


async def soup(client: Client) -> BeautifulSoup:
    response = await client.get("/links/import/")
    assert response.status_code == 200
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def test_a_file_becomes_links(client: Client, shelf: Library) -> None:
    content = bookmarks(3) + b'<DT><A HREF="javascript:x">no</A><A HREF="https://example.com/n/1">'
    response = await post(client, content)
    assert (response.status_code, response.location) == (303, "/links/import/")
    page = await soup(client)
    assert page.select_one("progress[value='0']") is not None
    assert "waiting" in page.text
    await shelf.do()
    page = await soup(client)
    assert page.select("progress") == []
    assert "3 added, 1 already saved, 1 skipped" in " ".join(page.text.split())
    async with shelf.database.read() as session:
        links = await queries.list_links(session, shelf.user_id, limit=10)
        events = (await session.scalars(select(LiveEvent).order_by(LiveEvent.id))).all()
    assert [each.title for each in links] == ["Title 2", "Title 1", "Title 0"]
    assert {each.created_at.timestamp() for each in links} == {1_700_000_000}
    assert {tuple(each.tags) for each in links} == {("a", "b")}
    assert [each.kind for each in events] == ["import", "import"]
    assert events[-1].data == {
        "id": events[-1].data["id"],
        "state": "done",
        "seen": 5,
        "added": 3,
        "percent": 100,
    }
    assert await shelf.count(ImportChunk) == 0
    assert await shelf.count(Job, Job.entrypoint == IMPORT_TASK.name) == 0


async def test_a_second_import_adds_nothing(app: Quart, shelf: Library) -> None:
    other = await Person().register(app)
    async with shelf.database.write() as session:
        theirs, _ = await queries.save_link(
            session, other.id, "https://example.com/n/0", title="Theirs"
        )
        mine, _ = await queries.save_link(
            session, shelf.user_id, "https://example.com/n/1", title="Mine"
        )
    for added in (1199, 0):
        number = await shelf.send(bookmarks(1200))
        await shelf.do()
        done = await shelf.progress(number)
        assert (done.state, done.seen, done.added, done.refused) == ("done", 1200, added, 0)
        assert done.position == done.size == len(bookmarks(1200))
    async with shelf.database.read() as session:
        assert await queries.get_link(session, other.id, theirs.id) == theirs
        assert await queries.get_link(session, shelf.user_id, mine.id) == mine
    assert await shelf.count(Link, Link.user_id == other.id) == 1
    assert await shelf.count(Link) == 1201


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
    ids=["pdf", "zeros", "a tag without an end"],
)
async def test_a_file_that_is_none(
    client: Client, shelf: Library, content: bytes, error: str, added: int
) -> None:
    number = await shelf.send(content)
    await shelf.do()
    failed = await shelf.progress(number)
    assert failed.state == "failed"
    assert error in (failed.error or "")
    assert failed.added == added
    assert error in (await soup(client)).text
    assert await shelf.count(ImportChunk) == 0
    assert await shelf.count(Job, Job.entrypoint == IMPORT_TASK.name) == 0


async def test_only_so_many_links(shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_LINKS", 700)
    number = await shelf.send(bookmarks(701))
    await shelf.do()
    done = await shelf.progress(number)
    assert (done.state, done.seen, done.added, done.warning) == (
        "done",
        700,
        700,
        jobs.TOO_MANY_LINKS,
    )


async def test_the_owner_is_told_what_was_lost(client: Client, shelf: Library) -> None:
    content = (
        b'<DL><DT><A HREF="https://example.com/1" TITLE="24" monitor">' + b"x" * 301 + b"</A>"
        b"<DD>" + b"n" * 1001 + bookmarks(600) + b'<DT><A HREF="https://example.com/2" TAGS="'
        b"%s" % b",".join(b"t%d" % number for number in range(21)) + b'">2</A><A HREF="https://exa'
    )
    number = await shelf.send(content)
    await shelf.do()
    done = await shelf.progress(number)
    assert (done.state, done.seen, done.added, done.error) == ("done", 602, 602, None)
    assert done.warning == (
        "1 title shortened to 300 characters; 1 note shortened to 1,000 characters;"
        " 1 link with skipped or shortened tags (limit: 20 tags of 40 characters);"
        " 1 link with broken markup (check title, tags and note)."
        " The file ends inside a tag or comment, so links at its end may be missing."
    )
    assert done.warning in (await soup(client)).text


async def test_notes_are_kept_and_other_features_are_told(shelf: Library) -> None:
    told: list[tuple[list[int], bool]] = []

    async def receive(_: object, *, session: Any, link_ids: list[int], in_bulk: bool) -> None:
        told.append((link_ids, in_bulk))

    note = b'<DT><A HREF="https://example.com/n">n</A><DD>Mine\n'
    await shelf.send(note + b'<DT><A HREF="https://example.com/m">m</A>')
    with metadata_requested.connected_to(receive):
        await shelf.do()
    async with shelf.database.read() as session:
        rows = (
            await session.execute(
                select(Link.id, Link.description, Link.description_given).order_by(Link.id)
            )
        ).all()
    assert [row[1:] for row in rows] == [("Mine", True), ("", False)]
    assert told == [([row.id for row in rows], True)]


async def test_one_at_a_time(client: Client, shelf: Library) -> None:
    results = await asyncio.gather(
        *(shelf.send(bookmarks(1)) for _ in range(4)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in results) == [
        *["ImportInProgressError"] * 3,
        "int",
    ]
    response = await post(client, bookmarks(1))
    assert response.status_code == 409
    assert await shelf.count(Import) == 1
    await shelf.do()
    assert (await post(client, bookmarks(1))).status_code == 303


async def test_nothing_was_chosen(client: Client, shelf: Library) -> None:
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
    assert await shelf.count(Import) == 0


async def test_what_is_too_large(client: Client, shelf: Library) -> None:
    with pytest.raises(RequestEntityTooLarge):
        await shelf.send(b"x" * (uploads.MAX_FILE_BYTES + 1))
    assert await shelf.count(Import) == await shelf.count(ImportChunk) == 0
    assert (await post(client, b"x" * (uploads.MAX_FILE_BYTES + 1))).status_code == 413
    assert await shelf.count(Import) == await shelf.count(ImportChunk) == 0
    assert (await post(client, b"x" * uploads.MAX_FILE_BYTES)).status_code == 303
    assert await shelf.count(ImportChunk) == uploads.MAX_FILE_BYTES // uploads.CHUNK_BYTES


async def test_an_upload_that_breaks_off(shelf: Library) -> None:
    half_sent = asyncio.Event()

    async def hang() -> AsyncIterator[bytes]:
        yield bookmarks(10_000)
        half_sent.set()
        await asyncio.sleep(60)

    sending = asyncio.create_task(uploads.receive_upload(shelf.database, shelf.user_id, hang()))
    await half_sent.wait()
    assert await shelf.count(ImportChunk) > 1
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert (
        await shelf.count(Import) == await shelf.count(ImportChunk) == await shelf.count(Job) == 0
    )


async def test_leftovers_go(shelf: Library) -> None:
    async def state(value: str, age: str) -> int:
        async with shelf.database.write() as session:
            row = Import(user_id=shelf.user_id, state=value, size=1)
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
    async with shelf.database.write() as session:
        await enqueue(session, jobs.CLEANUP_TASK)
    await shelf.do(jobs.CLEANUP_TASK)
    async with shelf.database.read() as session:
        left = set(await session.scalars(select(Import.id)))
    assert left == {*kept, failed}
    assert not left & set(gone)
    assert (await shelf.progress(failed)).error == jobs.IMPORT_FAILED
    assert await shelf.count(ImportChunk) == 2


class KilledError(BaseException):
    """A process ends without warning."""


async def test_who_goes_on_begins_where_the_other_has_ended(
    shelf: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt dies one batch further, once in the middle of its transaction."""
    content = bookmarks(4 * BATCH_SIZE + 7) + b'<A HREF="about:x">no</A>' * 3 + bookmarks(2)
    number = await shelf.send(content)
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
        await shelf.do(task)
        await shelf.make_due()
        if (await shelf.progress(number)).is_finished:
            break
    done = await shelf.progress(number)
    assert written > 5
    assert (done.state, done.seen, done.added, done.refused, done.known) == (
        "done",
        4 * BATCH_SIZE + 12,
        4 * BATCH_SIZE + 7,
        3,
        2,
    )
    assert await shelf.count(Link) == 4 * BATCH_SIZE + 7


async def test_the_process_ends_in_the_middle(
    shelf: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "SHUTDOWN_SECONDS", 0.0)
    number = await shelf.send(bookmarks(6 * BATCH_SIZE))
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
    async with working(runner_of(shelf.app, IMPORT_TASK)):
        await begun.wait()
    half = await shelf.progress(number)
    assert (half.state, half.seen, half.added) == ("running", 2 * BATCH_SIZE, 2 * BATCH_SIZE)
    async with shelf.database.read() as session:
        job = select(Job.status, Job.attempts).where(Job.entrypoint == IMPORT_TASK.name)
        assert (await session.execute(job)).all() == [("queued", 0)]
    await shelf.do()
    done = await shelf.progress(number)
    assert (done.state, done.seen, done.added) == ("done", 6 * BATCH_SIZE, 6 * BATCH_SIZE)


async def test_losses_are_counted_across_attempts(
    shelf: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = b'<DT><A HREF="https://example.com/%d">' + b"x" * 301 + b"</A>"
    number = await shelf.send(long % 1 + bookmarks(BATCH_SIZE) + long % 2)
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
    await shelf.do(task)
    await shelf.make_due()
    await shelf.do(task)
    assert calls == 3
    done = await shelf.progress(number)
    assert (done.state, done.seen) == ("done", BATCH_SIZE + 2)
    assert done.warning == "2 titles shortened to 300 characters."


async def test_who_was_thought_dead_stops(shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker has taken the job over, and this one does not know yet."""
    number = await shelf.send(bookmarks(4 * BATCH_SIZE))
    original = jobs._insert_links
    calls: list[int] = []
    raised: list[type[BaseException]] = []

    async def taken(*args: Any) -> int:
        added = await original(*args)
        calls.append(added)
        if len(calls) == 2:
            async with shelf.database.write() as session:
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
    doing = asyncio.create_task(shelf.do(task))
    async with asyncio.timeout(20):
        while not raised:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    assert raised == [JobTakenOverError]
    # The second batch had looked before the job was taken: it counts, the third does not.
    half = await shelf.progress(number)
    assert (half.state, half.seen, len(calls)) == ("running", 2 * BATCH_SIZE, 2)
    assert await shelf.count(Link) == 2 * BATCH_SIZE


async def test_given_up(shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: Any) -> int:
        raise RuntimeError

    monkeypatch.setattr(jobs, "_insert_links", broken)
    number = await shelf.send(bookmarks(3))
    await shelf.do(replace(IMPORT_TASK, backoff_seconds=()))
    failed = await shelf.progress(number)
    assert (failed.state, failed.error) == ("failed", jobs.IMPORT_FAILED)
    assert await shelf.count(ImportChunk) == 0


async def test_imports_of_others_are_not_shown(app: Quart, client: Client, shelf: Library) -> None:
    other = Library(app, (await Person().register(app)).id)
    number = await other.send(bookmarks(1))
    assert (await soup(client)).select("#imports section") == []
    async with shelf.database.read() as session:
        assert await jobs.get_import(session, shelf.user_id, number) is None


async def test_an_account_that_goes_while_its_file_arrives(app: Quart) -> None:
    shelf = Library(app, (await Person().register(app)).id)

    async def arriving() -> AsyncIterator[bytes]:
        yield b"x" * uploads.CHUNK_BYTES
        async with shelf.database.write() as session:
            await session.execute(delete(User).where(User.id == shelf.user_id))
        yield b"x"

    with pytest.raises(uploads.AccountDeletedError):
        await uploads.receive_upload(shelf.database, shelf.user_id, arriving())
    with pytest.raises(uploads.AccountDeletedError):
        await uploads.receive_upload(shelf.database, shelf.user_id, chunks(b"x"))


@pytest.mark.parametrize("batch", [2, 500])
@pytest.mark.parametrize(("most", "added"), [(3, 0), (4, 1), (13, 10)])
async def test_links_saved_before_take_no_room_in_an_import(
    shelf: Library, monkeypatch: pytest.MonkeyPatch, batch: int, most: int, added: int
) -> None:
    """The file begins with the three links that the user has, and has ten others."""
    monkeypatch.setattr(queries, "MAX_LINKS", most)
    monkeypatch.setattr(jobs, "BATCH_SIZE", batch)
    async with shelf.database.write() as session:
        for number in range(3):
            await queries.save_link(session, shelf.user_id, f"https://example.com/n/{number}")
    import_id = await shelf.send(bookmarks(13))
    await shelf.do()
    progress = await shelf.progress(import_id)
    assert (progress.state, progress.added, progress.known) == ("done", added, 3)
    assert progress.refused == 10 - added
    assert (jobs.ACCOUNT_FULL in (progress.warning or "")) is (added < 10)
    assert await shelf.count(Link) == 3 + added
