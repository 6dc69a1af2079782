"""Import a bookmark file in the background; `uploads` has stored it, piece by piece."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.bookmarks.bookmark_file import Bookmark, BookmarkParser
from app.bookmarks.models import Import, ImportChunk
from app.links import queries, search_index
from app.links.hooks import announce_change, request_metadata
from app.links.models import Link
from quart_upsun.database import Database
from quart_upsun.jobs.models import Job
from quart_upsun.jobs.queue import JobContext, JobError, JobTakenOverError, Schedule, Task

MAX_LINKS = 50_000
BATCH_SIZE = 500  # links per transaction
EVENT_INTERVAL_SECONDS = 0.5

# No upload takes this long, so its process was killed.
STALE_UPLOAD_AGE = timedelta(minutes=15)
STALE_IMPORT_AGE = timedelta(days=1)  # its job has been lost
RETENTION = timedelta(days=90)

RECEIVING, WAITING, RUNNING, DONE, FAILED = "receiving", "waiting", "running", "done", "failed"
UNFINISHED = (RECEIVING, WAITING, RUNNING)

NO_LINKS = "The file contains no links. Export the bookmarks of your browser as HTML."
TOO_MANY_LINKS = (
    f"The file has more than {MAX_LINKS:,} links. Only the first {MAX_LINKS:,} were imported."
)
ACCOUNT_FULL = (
    f"You have reached the limit of {queries.MAX_LINKS:,} links. Further links were not imported."
)
IMPORT_FAILED = (
    "The import failed. Links imported so far are saved; upload the file again to import the rest."
)


class ImportProgress(NamedTuple):
    """The progress of an import."""

    id: int
    state: str
    """receiving, waiting, running, done, failed."""
    size: int
    """Bytes; 0 during the upload."""
    position: int
    """Bytes processed so far."""
    seen: int
    added: int
    refused: int
    error: str | None
    """Why it failed."""
    warning: str | None
    """What was shortened, skipped or damaged."""
    created_at: datetime
    finished_at: datetime | None

    @property
    def is_finished(self) -> bool:
        return self.state not in UNFINISHED

    @property
    def percent(self) -> int:
        if self.state == DONE:
            return 100
        return 100 * self.position // self.size if self.size else 0

    @property
    def known(self) -> int:
        """Links that were already saved, or occur twice in the file."""
        return self.seen - self.added - self.refused


COLUMNS = [getattr(Import, name) for name in ImportProgress._fields]


async def get_import(session: AsyncSession, user_id: int, import_id: int) -> ImportProgress | None:
    """Return an import, or None if the user has no import with this id."""
    mine = select(*COLUMNS).where(Import.id == import_id, Import.user_id == user_id)
    row = (await session.execute(mine)).one_or_none()
    return ImportProgress(*row) if row is not None else None


async def list_imports(session: AsyncSession, user_id: int, limit: int) -> list[ImportProgress]:
    """Return the user's imports, newest first."""
    mine = select(*COLUMNS).where(Import.user_id == user_id)
    rows = await session.execute(mine.order_by(Import.id.desc()).limit(limit))
    return [ImportProgress(*row) for row in rows]


async def import_file(running: JobContext) -> None:
    """Import the links of a file; a retry resumes where the previous attempt stopped."""
    import_id = running.data["id"]
    database = running.database
    async with database.read() as session:
        row = select(Import.state, Import.seen).where(Import.id == import_id)
        state, seen = (await session.execute(row)).one_or_none() or (FAILED, 0)
        numbers = select(ImportChunk.number).where(ImportChunk.import_id == import_id)
        chunks = (await session.scalars(numbers.order_by(ImportChunk.number))).all()
    if state not in {WAITING, RUNNING}:  # deleted with its user, or already failed
        return
    parser = BookmarkParser(skip=seen, max_links=MAX_LINKS)
    writer = _BatchWriter(running, import_id, seen)
    thread = ThreadPoolExecutor(1, "import")  # see `BookmarkParser`
    try:
        async with aclosing(_read_ahead(database, import_id, chunks, parser, thread)) as pieces:
            async for links, size in pieces:
                await writer.add(links, size)
    finally:
        thread.shutdown(wait=False)
    error = parser.error or (None if parser.count else NO_LINKS)
    warnings = (TOO_MANY_LINKS if parser.is_full else None, parser.losses.summary())
    await writer.end(
        FAILED if error else DONE, error=error, warning=" ".join(filter(None, warnings)) or None
    )


async def _read_ahead(
    database: Database,
    import_id: int,
    chunks: Sequence[int],
    parser: BookmarkParser,
    thread: ThreadPoolExecutor,
) -> AsyncGenerator[tuple[list[Bookmark], int], None]:
    """Yield the links of each chunk and its size in bytes; parse the next chunk meanwhile.

    Raises:
        JobTakenOverError: the file has been deleted.
    """

    loop = asyncio.get_running_loop()

    async def read(number: int | None) -> tuple[list[Bookmark], int]:
        if number is None:
            return await loop.run_in_executor(thread, parser.close), 0
        one = select(ImportChunk.content).where(
            ImportChunk.import_id == import_id, ImportChunk.number == number
        )
        async with database.read() as session:
            content = await session.scalar(one)
        if content is None:
            raise JobTakenOverError
        return await loop.run_in_executor(thread, parser.feed, content), len(content)

    following: asyncio.Task[tuple[list[Bookmark], int]] | None = None
    try:
        for number in [*chunks, None]:
            found = await following if following else None
            following = None
            if number is None or not parser.is_finished:
                following = asyncio.create_task(read(number))
            if found:
                yield found
        if following:
            yield await following
    finally:
        if following:  # the consumer has failed or was canceled
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


class _BatchWriter:
    """Write links in batches, each exactly once, even if two workers run the same job.

    Links and progress are written in one transaction. It checks that the progress is where this
    writer left it, and that this worker still owns the job.
    """

    def __init__(self, running: JobContext, import_id: int, seen: int) -> None:
        self._running = running
        self._import_id = import_id
        self._seen = seen
        self._position = 0
        self._waiting: list[Bookmark] = []
        self._is_limited = False  # whether the user has reached MAX_LINKS
        self._last_event = 0.0

    async def add(self, links: Sequence[Bookmark], size: int) -> None:
        """Add the links of the next `size` bytes, and write all complete batches."""
        self._waiting += links
        self._position += size
        while len(self._waiting) >= BATCH_SIZE:
            async with self._running.database.write() as session:
                mine = select(Job.id).where(
                    Job.id == self._running.id, Job.queue_manager_id == self._running.owner
                )
                if await session.scalar(mine) is None:
                    raise JobTakenOverError
                now = time.monotonic()
                is_due = now >= self._last_event + EVENT_INTERVAL_SECONDS
                links = self._waiting[:BATCH_SIZE]
                await self._write(session, links, notify=is_due, state=RUNNING)
            self._last_event = now if is_due else self._last_event
            self._done(links)

    async def end(self, state: str, *, error: str | None, warning: str | None) -> None:
        """Write the remaining links, complete the job and delete the file in one transaction."""
        async with self._running.complete() as session:
            links = self._waiting[:BATCH_SIZE]
            await session.execute(
                delete(ImportChunk).where(ImportChunk.import_id == self._import_id)
            )
            await self._write(
                session,
                links,
                notify=True,
                state=state,
                error=error,
                warning=warning,
                finished_at=func.now(),
            )
        self._done(links)

    def _done(self, links: Sequence[Bookmark]) -> None:
        self._seen += len(links)
        del self._waiting[: len(links)]

    async def _write(
        self, session: AsyncSession, links: Sequence[Bookmark], *, notify: bool, **values: Any
    ) -> None:
        # Waits for the transaction of an earlier attempt.
        row = select(Import.user_id, Import.seen).where(Import.id == self._import_id)
        user_id, seen = (await session.execute(row.with_for_update())).one_or_none() or (0, -1)
        if seen < 0:  # deleted with its user
            raise JobTakenOverError
        if seen != self._seen:
            # The earlier attempt committed after this one had read the progress: retry from there.
            raise JobError("An earlier attempt was still running.", "moved")
        good = [link for link in links if link.url is not None]
        fitting = await _select_importable(session, user_id, good)
        self._is_limited = self._is_limited or len(fitting) < len(good)
        good = fitting
        added = await _insert_links(session, user_id, good) if good else 0
        if self._is_limited and "warning" in values:
            values["warning"] = " ".join(filter(None, (ACCOUNT_FULL, values["warning"])))
        updated = (
            update(Import)
            .where(Import.id == self._import_id)
            .values(
                position=func.least(self._position, Import.size),
                seen=Import.seen + len(links),
                added=Import.added + added,
                refused=Import.refused + len(links) - len(good),
                **values,
            )
            .returning(*COLUMNS)
            .execution_options(synchronize_session=False)
        )
        progress = ImportProgress(*(await session.execute(updated)).one())
        if notify:
            await announce_change(session, user_id, "import", **progress_event(progress))


def progress_event(progress: ImportProgress) -> dict[str, Any]:
    """Return the data of the event for open pages."""
    names = ("id", "state", "seen", "added", "percent")
    return {name: getattr(progress, name) for name in names}


async def _select_importable(
    session: AsyncSession, user_id: int, links: Sequence[Bookmark]
) -> list[Bookmark]:
    """Return the links that are already saved, and as many new links as the user may add."""
    room = max(0, await queries.remaining_links(session, user_id))
    if len(links) <= room:
        return list(links)
    urls = [link.url for link in links]
    mine = select(Link.url).where(Link.user_id == user_id, Link.url.in_(urls))
    known: set[str | None] = set(await session.scalars(mine))
    importable = []
    for link in links:
        if link.url not in known:
            if not room:
                continue
            room -= 1
            known.add(link.url)
        importable.append(link)
    return importable


INSERT_LINKS = text(
    """
    INSERT INTO links (
        user_id, url, title, title_given, description, description_given, tags, archived,
        created_at, attempted_at, search
    )
    SELECT :user_id, url, title, title <> '', description, description <> '',
        string_to_array(tags, ' '), archived, coalesce(created_at, now()), now(),
        CAST(search AS tsvector)
    FROM unnest(
        CAST(:urls AS text[]), CAST(:titles AS text[]), CAST(:descriptions AS text[]),
        CAST(:tags AS text[]), CAST(:archived AS boolean[]), CAST(:times AS timestamptz[]),
        CAST(:searches AS text[])
    ) WITH ORDINALITY AS link (
        url, title, description, tags, archived, created_at, search, number
    )
    ORDER BY number
    ON CONFLICT (user_id, url) DO NOTHING
    RETURNING id
    """
)


async def _insert_links(session: AsyncSession, user_id: int, links: Sequence[Bookmark]) -> int:
    """Insert links in one statement; return how many are new. Existing links stay unchanged."""
    values = {
        "user_id": user_id,
        "urls": [link.url for link in links],
        "titles": [link.title for link in links],
        "descriptions": [link.description for link in links],
        "tags": [" ".join(link.tags) for link in links],
        "archived": [link.archived for link in links],
        "times": [link.created_at for link in links],
        "searches": [
            search_index.search_vector(
                user_id,
                url=link.url or "",
                title=link.title,
                tags=link.tags,
                description=link.description,
            )
            for link in links
        ],
    }
    ids = (await session.scalars(INSERT_LINKS, values)).all()
    if ids:
        await request_metadata(session, ids, in_bulk=True)
    return len(ids)


async def record_final_failure(running: JobContext, error: str) -> None:
    """Mark the import as failed for its owner; `error` is only for administrators."""
    async with running.database.write() as session:
        await _fail_imports(session, Import.id == running.data["id"])


async def _fail_imports(session: AsyncSession, condition: Any) -> None:
    failed = (
        update(Import)
        .where(condition, Import.state.in_((WAITING, RUNNING)))
        .values(state=FAILED, error=IMPORT_FAILED, finished_at=func.now())
        .returning(*COLUMNS, Import.user_id)
        .execution_options(synchronize_session=False)
    )
    rows = (await session.execute(failed)).all()
    ids = [row.id for row in rows]
    await session.execute(delete(ImportChunk).where(ImportChunk.import_id.in_(ids)))
    for row in sorted(rows, key=lambda each: each.user_id):
        progress = ImportProgress(*row[:-1])
        await announce_change(session, row.user_id, "import", **progress_event(progress))


async def clean_up_imports(running: JobContext) -> None:
    """Delete aborted uploads and old imports; mark imports whose job was lost as failed."""
    aborted = (Import.state == RECEIVING) & (Import.created_at < func.now() - STALE_UPLOAD_AGE)
    old = Import.created_at < func.now() - RETENTION
    async with running.complete() as session:
        await session.execute(delete(Import).where(or_(aborted, old)))
        await _fail_imports(session, Import.created_at < func.now() - STALE_IMPORT_AGE)


# Two at a time: an import keeps the database as busy as many users who save links.
IMPORT_TASK = Task(
    "links.import",
    import_file,
    timeout=1800,
    backoff_seconds=(5, 30, 120),
    max_concurrent=2,
    logged_fields=("id",),
    on_failure=record_final_failure,
)
CLEANUP_TASK = Task("links.tidy_imports", clean_up_imports)
TASKS = (IMPORT_TASK,)
SCHEDULES = (Schedule(CLEANUP_TASK, "10 * * * *"),)
