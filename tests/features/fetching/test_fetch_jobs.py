"""Fetch jobs and refetches."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from quart import Quart
from sqlalchemy import func, insert, select, text, update

from app.fetching import jobs
from app.links import queries
from app.links.hooks import request_metadata
from app.links.models import Icon, Link
from app.links.queries import LinkItem
from quart_upsun.database import Database
from quart_upsun.fetching import (
    MAX_FETCHES_PER_HOST,
    Fetcher,
    PageMetadata,
    Visit,
    job_turns,
    page_metadata,
)
from quart_upsun.fetching.turns import WAITING
from quart_upsun.jobs.models import Job
from quart_upsun.jobs.queue import JobContext, enqueue
from quart_upsun.jobs.runner import Runner
from quart_upsun.testing import runner_of
from quart_upsun.testing.runners import working
from tests.features.factories import Person
from tests.features.links.announcements import Announcement

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PAGE = b"""<!doctype html><title>A &lt;i>title&lt;/i> &amp; more</title>
<meta name="description" content="What it is about"><link rel="icon" href="/icon.png">"""

BLOCKED = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)

Answers = dict[str, tuple[str, str, bytes]]


class Links:
    """A user with a reading list, and a job runner."""

    def __init__(self, app: Quart, user_id: int) -> None:
        self.app = app
        self.user_id = user_id
        self.database: Database = app.extensions["quart_upsun"].database

    async def save(self, url: str, **values: Any) -> LinkItem:
        async with self.database.write() as session:
            item, _ = await queries.save_link(session, self.user_id, url, **values)
        return item

    async def get(self, item: LinkItem) -> LinkItem:
        async with self.database.read() as session:
            found = await queries.get_link(session, self.user_id, item.id)
        assert found is not None
        return found

    async def do_jobs(self) -> None:
        await self.app.extensions["quart_upsun"].jobs.run_due()

    def runner(self) -> Runner:
        return runner_of(self.app, jobs.FETCH_TASK)

    async def count(self, *what: Any) -> int:
        async with self.database.read() as session:
            return await session.scalar(select(func.count()).select_from(what[0])) or 0


@pytest.fixture
async def links(app: Quart) -> Links:
    app.extensions["fetcher"] = Fetcher(
        allowed=lambda address, port: address.is_loopback,
        ports=range(1, 65536),
        step_timeout=10,
        total_timeout=20,
    )
    person = await Person().register(app)
    return Links(app, person.id)


@asynccontextmanager
async def site(answers: Answers) -> AsyncIterator[Callable[[str], str]]:
    """Serve responses (status, type, content) by path; yield a function from path to URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1].decode()
        status, kind, content = answers.get(path, ("404 Not Found", "text/plain", b""))
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield lambda path: f"http://127.0.0.1:{port}{path}"


async def test_fetch_stores_title_description_and_icon(
    links: Links, announced: list[Announcement]
) -> None:
    answers: Answers = {
        "/": ("200 OK", "text/html", PAGE),
        "/icon.png": ("200 OK", "image/svg+xml", PNG),  # the type is detected from the content
    }
    async with site(answers) as url:
        item = await links.save(url("/"))
        assert item.is_pending
        await links.do_jobs()
    now = await links.get(item)
    assert (now.title, now.description) == ("A <i>title</i> & more", "What it is about")
    assert now.icon_digest is not None
    assert now.fetch_error is None
    assert not now.is_pending
    assert now.version == item.version + 1
    async with links.database.read() as session:
        icon = (await session.scalars(select(Icon))).one()
    assert (icon.content, icon.content_type) == (PNG, "image/png")
    assert announced == [(links.user_id, "link", {"id": item.id})] * 2
    assert await links.count(Job) == 0


@pytest.mark.parametrize(
    ("name", "pages"), [("title", "A <i>title</i> & more"), ("description", "What it is about")]
)
async def test_fetch_keeps_text_entered_by_the_owner(links: Links, name: str, pages: str) -> None:
    async def change(text: str) -> None:
        async with links.database.write() as session:
            values: dict[str, Any] = {name: text}
            await queries.update_link(session, links.user_id, item.id, **values)

    async with site({"/": ("200 OK", "text/html", PAGE)}) as url:
        item = await links.save(url("/"))
        await change("Mine")
        await links.do_jobs()
        now = await links.get(item)
        assert getattr(now, name) == "Mine"
        assert now.fetched_at is not None
        await change("")  # an empty text is replaced by the page's
        await links.do_jobs()
    assert getattr(await links.get(item), name) == pages


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        ("404 Not Found", "text/html", "The server returned HTTP 404."),
        ("200 OK", "application/pdf", "Unsupported content type: application/pdf."),
    ],
)
async def test_permanent_fetch_error_is_not_retried(
    links: Links, status: str, kind: str, sentence: str
) -> None:
    async with site({"/": (status, kind, b"x")}) as url:
        item = await links.save(url("/"), title="Mine")
        await links.do_jobs()
    now = await links.get(item)
    assert (now.title, now.fetch_error, now.is_pending) == ("Mine", sentence, False)
    assert await links.count(Job) == 0


async def test_temporary_fetch_error_is_retried(
    links: Links, announced: list[Announcement]
) -> None:
    """The owner sees the error immediately; it does not become a failed job."""
    answers: Answers = {"/": ("503 Service Unavailable", "text/html", b"")}
    async with site(answers) as url:
        item = await links.save(url("/"))
        for attempt in range(len(jobs.FETCH_TASK.backoff_seconds)):
            await links.do_jobs()
            now = await links.get(item)
            assert now.fetch_error == "The server returned HTTP 503."
            assert now.is_pending
            assert len(announced) == 2 + attempt  # one from saving
            async with links.database.write() as session:
                row = (await session.execute(select(Job.status, Job.attempts))).one()
                assert row == ("queued", attempt + 1)
                await session.execute(update(Job).values(execute_after=func.now()))
        await links.do_jobs()
    assert not (await links.get(item)).is_pending
    assert await links.count(Job) == 0


async def test_fetch_of_a_deleted_link_does_nothing(links: Links) -> None:
    item = await links.save("http://127.0.0.1:1/")
    async with links.database.write() as session:
        assert await queries.delete_link(session, links.user_id, item.id)
    await links.do_jobs()
    assert await links.count(Job) == 0


async def test_private_addresses_are_not_fetched(links: Links) -> None:
    async with Fetcher() as links.app.extensions["fetcher"]:
        item = await links.save("http://localhost/")
        await links.do_jobs()
    assert (await links.get(item)).fetch_error == "The host has no public IP address."


async def test_old_and_never_fetched_links_are_refetched(links: Links) -> None:
    """Links fetched long ago, and links that were never fetched."""
    async with site({"/": ("200 OK", "text/html", PAGE)}) as url:
        old = await links.save(url("/"))
        await links.do_jobs()
        never, fresh = await links.save(url("/?never")), await links.save(url("/?fresh"))
        async with links.database.write() as session:
            await session.execute(text("DELETE FROM pgqueuer"))
            for item, values in (
                (old, {"attempted_at": func.now() - text("interval '31 days'"), "description": ""}),
                (
                    never,
                    {"attempted_at": None, "created_at": func.now() - text("interval '2 hours'")},
                ),
            ):
                await session.execute(update(Link).where(Link.id == item.id).values(values))
            await enqueue(session, jobs.REFETCH_TASK)
        await links.do_jobs()
    assert (await links.get(old)).description == "What it is about"
    assert (await links.get(never)).fetch_error == "The server returned HTTP 404."
    assert (await links.get(fresh)).is_pending


async def test_refetches_are_shared_fairly_between_owners(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if one owner has many links that never respond, and whatever the result of a fetch."""
    monkeypatch.setattr(jobs, "REFETCH_BATCH", 10)
    other = Links(links.app, (await Person().register(links.app)).id)
    add = text(
        "INSERT INTO links (user_id, url, created_at)"
        " SELECT :user_id, 'http://127.0.0.1:1/' || n, now() - interval '2 hours'"
        " FROM generate_series(1, :count) AS n"
    )
    async with links.database.write() as session:
        await session.execute(add, {"user_id": links.user_id, "count": 30})
        await session.execute(add, {"user_id": other.user_id, "count": 6})

    async def refetch() -> list[int]:
        """Run the refetch job; return how many fetches it enqueued for each owner."""
        async with links.database.write() as session:
            await session.execute(text("DELETE FROM pgqueuer"))  # none of them succeeds
            await enqueue(session, jobs.REFETCH_TASK)
        await runner_of(links.app, jobs.REFETCH_TASK).run_due()
        count = text(
            "SELECT count(*) FROM pgqueuer JOIN links"
            " ON links.id = (convert_from(payload, 'UTF8')::json ->> 'link')::bigint"
            " WHERE user_id = :user_id"
        )
        async with links.database.read() as session:
            return [
                await session.scalar(count, {"user_id": each.user_id}) or 0
                for each in (links, other)
            ]

    assert [await refetch() for _ in range(5)] == [[5, 5], [5, 1], [10, 0], [10, 0], [0, 0]]


async def test_fetch_that_always_crashes_ends_with_an_error(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a page that breaks the parser")

    monkeypatch.setattr(page_metadata, "read_metadata", broken)
    async with site({"/": ("200 OK", "text/html", PAGE)}) as url:
        item = await links.save(url("/"))
        for _ in range(len(jobs.FETCH_TASK.backoff_seconds) + 1):
            await links.do_jobs()
            async with links.database.write() as session:
                await session.execute(update(Job).values(execute_after=func.now()))
    now = await links.get(item)
    assert (now.fetch_error, now.is_pending) == ("The page could not be read.", False)
    assert await links.count(Job) == 0  # not kept as a failed job


async def test_manual_refetch_does_not_wait_for_the_retry(links: Links) -> None:
    answers: Answers = {"/": ("503 Service Unavailable", "text/html", b"")}
    async with site(answers) as url:
        item = await links.save(url("/"))
        await links.do_jobs()
        answers["/"] = ("200 OK", "text/html", PAGE)
        async with links.database.write() as session:
            await jobs.enqueue_fetches(session, [item.id])
        await links.do_jobs()
    now = await links.get(item)
    assert (now.description, now.fetch_error) == ("What it is about", None)


async def test_imported_links_have_lower_priority(links: Links) -> None:
    async with links.database.write() as session:
        urls = ("https://a.example/", "https://b.example/")
        values = [{"user_id": links.user_id, "url": url} for url in urls]
        one, many = await session.scalars(insert(Link).returning(Link.id), values)
        await request_metadata(session, [one])
        await request_metadata(session, [many], in_bulk=True)
        queued = (await session.execute(select(Job.dedupe_key, Job.priority))).all()
    assert sorted(queued) == [
        (f"links.fetch {one}", jobs.FETCH_TASK.priority),
        (f"links.fetch {many}", jobs.BULK_PRIORITY),
    ]
    # Schedules have priority 0.
    assert jobs.BULK_PRIORITY < 0 < jobs.FETCH_TASK.priority


async def test_fetch_is_stored_once_when_two_workers_run_the_job(links: Links) -> None:
    """Another worker has taken over the job: the first one must not store its result."""
    async with site({"/": ("200 OK", "text/html", PAGE)}) as url:
        item = await links.save(url("/"))

        async def slow(running: Any) -> None:
            async with links.database.write() as session:
                await session.execute(update(Job).values(queue_manager_id=None))
            await jobs.fetch_link(running)

        task = replace(jobs.FETCH_TASK, run=slow)
        await runner_of(links.app, task).run_due()
    assert (await links.get(item)).version == item.version


class Page:
    """A site whose responses wait until `go` is set."""

    def __init__(self) -> None:
        self.open = 0
        self.max_open = 0
        self.requests: list[str] = []
        self.go = asyncio.Event()
        self.status = "200 OK"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self.requests.append(path)
        self.open += 1
        self.max_open = max(self.max_open, self.open)
        await self.go.wait()
        self.open -= 1
        kind, content = ("image/png", PNG) if "icon" in path else ("text/html", PAGE)
        writer.write(
            f"HTTP/1.1 {self.status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        writer.close()


@asynccontextmanager
async def slow_site() -> AsyncIterator[tuple[Page, Callable[[str], str]]]:
    page = Page()
    server = await asyncio.start_server(page.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield page, lambda path: f"http://127.0.0.1:{port}{path}"
    finally:
        page.go.set()
        server.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 polls the database
            await asyncio.sleep(0.01)


async def test_links_of_one_host_wait_in_the_queue(links: Links) -> None:
    """The worker holds only a few of them, no attempt is counted, and all are fetched."""
    count = 40
    async with slow_site() as (page, url):
        items = [await links.save(url(f"/{number}")) for number in range(count)]
        async with working(links.runner()):

            async def all_others_wait() -> bool:
                async with links.database.read() as session:
                    rows = await session.execute(
                        select(Job.status, Job.attempts, func.count()).group_by(
                            Job.status, Job.attempts
                        )
                    )
                    return sorted(map(tuple, rows)) == [
                        ("picked", 0, MAX_FETCHES_PER_HOST + WAITING),
                        ("queued", 0, count - MAX_FETCHES_PER_HOST - WAITING),
                    ]

            await until(all_others_wait)
            assert page.open == 2
            page.go.set()

            async def all_are_done() -> bool:
                return await links.count(Job) == 0

            await until(all_are_done)
    assert page.max_open == 2
    for item in items:
        now = await links.get(item)
        assert (now.fetch_error, now.is_pending) == (None, False)
        assert now.icon_digest is not None


async def test_waiting_for_a_host_does_not_count_towards_the_timeout(links: Links) -> None:
    fetcher: Fetcher = links.app.extensions["fetcher"]
    async with site({"/": ("200 OK", "text/html", PAGE)}) as url:
        item = await links.save(url("/"))
        with Visit(fetcher.turns) as one, Visit(fetcher.turns) as other:
            for visit in (one, other):
                await visit.enter("127.0.0.1", None)
            task = replace(jobs.FETCH_TASK, timeout=3)
            running = asyncio.create_task(runner_of(links.app, task).run_due())

            async def waits() -> bool:
                return fetcher.turns.waiting("127.0.0.1") == 1

            await until(waits)
            await asyncio.sleep(3.1)  # longer than the timeout
        await running
    now = await links.get(item)
    assert (now.fetch_error, now.is_pending) == (None, False)


async def test_stalled_host_queue_is_resumed(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another process took the job that was resumed last."""
    monkeypatch.setattr(job_turns, "CALL_TIMEOUT_SECONDS", 0.01)
    fetcher: Fetcher = links.app.extensions["fetcher"]
    async with site({"/": ("200 OK", "text/html", PAGE)}) as url:
        item = await links.save(url("/"))
        async with links.database.write() as session:
            job = await session.scalar(
                update(Job).values(execute_after=text("now() + interval '1 h'")).returning(Job.id)
            )
        assert job is not None
        fetcher.turns.line_up("127.0.0.1", job)
        resuming = asyncio.create_task(job_turns._keep_calling(links.app))
        try:
            async with working(links.runner()):

                async def is_done() -> bool:
                    return not (await links.get(item)).is_pending

                await until(is_done)
        finally:
            resuming.cancel()


async def test_page_and_icon_share_one_slot_of_the_host(links: Links) -> None:
    async with slow_site() as (page, url):
        page.go.set()
        for number in range(6):
            await links.save(url(f"/{number}"))
        async with working(links.runner()):

            async def all_are_done() -> bool:
                return await links.count(Job) == 0

            await until(all_are_done)
    # The third page is requested only after the icon of one of the first two.
    assert "/icon.png" in page.requests[:4]


async def test_failed_fetch_releases_its_slot(links: Links) -> None:
    async with slow_site() as (page, url):
        page.status = "404 Not Found"
        items = [await links.save(url(f"/{number}")) for number in range(6)]
        async with working(links.runner()):

            async def the_first_have_come() -> bool:
                return page.open == 2

            await until(the_first_have_come)
            page.go.set()

            async def all_are_done() -> bool:
                return await links.count(Job) == 0

            await until(all_are_done)
    assert {(await links.get(item)).fetch_error for item in items} == {
        "The server returned HTTP 404."
    }


async def test_concurrent_update_and_fetch_do_not_deadlock(links: Links) -> None:
    """The update locks the link, then the job; the fetch completes the job and updates the link."""
    item = await links.save("https://site.example/")
    worker = uuid4()
    async with links.database.write() as session:
        picked = update(Job).values(status="picked", queue_manager_id=worker).returning(Job.id)
        job = (await session.scalars(picked)).one()
    running = JobContext(job, {"link": item.id}, 1, links.database, owner=str(worker))
    page = PageMetadata(title="Its own", description="What it is about", icons=[])

    async def waits() -> bool:
        async with links.database.read() as session:
            return bool(await session.scalar(BLOCKED))

    async with links.database.write() as session:
        await queries.update_link(session, links.user_id, item.id, title="Mine")
        storing = asyncio.create_task(jobs._store_page(running, item.id, page, None))
        await until(waits)
        await queries.update_link(session, links.user_id, item.id, description="")
    await storing
    now = await links.get(item)
    assert (now.title, now.description) == ("Mine", "What it is about")
    assert await links.count(Job) == 0
