"""Keeping a file of bookmarks as it arrives, in pieces, until a job has read it.

In the database, because the worker shares no disk with the web container.
"""

from collections.abc import AsyncIterator

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.exceptions import RequestEntityTooLarge

from app.bookmarks.jobs import (
    COLUMNS,
    IMPORT_TASK,
    RECEIVING,
    STALE_UPLOAD_AGE,
    UNFINISHED,
    WAITING,
    ImportProgress,
    progress_event,
)
from app.bookmarks.models import Import, ImportChunk
from app.user.models import User
from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.http.bodies import BodyLimit
from quart_upsun.jobs.queue import enqueue
from quart_upsun.live.events import publish
from quart_upsun.logging import get_logger

log = get_logger(__name__)

MAX_FILE_BYTES = 32 * 1024 * 1024  # bytes
UPLOAD_TIMEOUT_SECONDS = 300.0  # seconds that a file may take to arrive
# A row. Small enough to be read in a moment; each is a transaction, of which there should be few.
CHUNK_BYTES = 256 * 1024

FILE_BODY_LIMIT = BodyLimit(MAX_FILE_BYTES, UPLOAD_TIMEOUT_SECONDS)
FORM_BODY_LIMIT = BodyLimit(
    MAX_FILE_BYTES + 64 * 1024, UPLOAD_TIMEOUT_SECONDS
)  # what is around the file


class ImportInProgressError(Exception):
    """The user has an import that has not ended yet."""


class EmptyFileError(Exception):
    """There was no file, or nothing in it."""


class AccountDeletedError(Exception):
    """The account was deleted while the file arrived."""


async def receive_upload(database: Database, user_id: int, chunks: AsyncIterator[bytes]) -> int:
    """Keep a file as it arrives, and ask for it to be read; return the number of the import.

    Each piece is a transaction of its own, and nothing is held while the next one arrives. The
    last transaction asks for the job. Whatever ends this before leaves nothing behind.

    Args:
        database: where it is kept.
        user_id: whose.
        chunks: the content of the file.

    Raises:
        ImportInProgressError: another import of the user has not ended.
        EmptyFileError: there is no content.
        AccountDeletedError: the user's account was deleted meanwhile.
        RequestEntityTooLarge: there is more than 32 MiB.
        Exception: whatever `chunks` raises.
    """
    try:
        return await _store_upload(database, user_id, chunks)
    except (IntegrityError, NoResultFound):  # the rows went with their user
        raise AccountDeletedError from None


async def _store_upload(database: Database, user_id: int, chunks: AsyncIterator[bytes]) -> int:
    async with database.write() as session:
        import_id = await _create_import(session, user_id)
    try:
        number = size = 0
        async for content in _rechunk(chunks):
            size += len(content)
            if size > MAX_FILE_BYTES:
                raise RequestEntityTooLarge
            row = insert(ImportChunk).values(import_id=import_id, number=number, content=content)
            async with database.write() as session:
                await session.execute(row)
            number += 1
        if not size:
            raise EmptyFileError
        async with database.write() as session:
            await _enqueue_import(session, user_id, import_id, size)
    except BaseException:
        await _delete_upload(database, import_id)
        raise
    return import_id


async def _create_import(session: AsyncSession, user_id: int) -> int:
    # One after the other: two uploads of the same moment would not see each other.
    await session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    lost = Import.created_at < func.now() - STALE_UPLOAD_AGE
    mine = Import.user_id == user_id
    await session.execute(delete(Import).where(mine, Import.state == RECEIVING, lost))
    if await session.scalar(select(Import.id).where(mine, Import.state.in_(UNFINISHED)).limit(1)):
        raise ImportInProgressError
    new = insert(Import).values(user_id=user_id, state=RECEIVING, size=0).returning(Import.id)
    return (await session.execute(new)).scalar_one()


async def _enqueue_import(session: AsyncSession, user_id: int, import_id: int, size: int) -> None:
    """Ask for the file to be read, which is whole."""
    whole = (
        update(Import)
        .where(Import.id == import_id)
        .values(state=WAITING, size=size)
        .returning(*COLUMNS)
        .execution_options(synchronize_session=False)
    )
    progress = ImportProgress(*(await session.execute(whole)).one())
    await enqueue(session, IMPORT_TASK, key=f"{IMPORT_TASK.name} {import_id}", id=import_id)
    await publish(session, user_id, "import", **progress_event(progress))


async def _rechunk(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same content in pieces of `CHUNK_BYTES`."""
    kept = bytearray()
    async for content in chunks:
        kept += content
        while len(kept) >= CHUNK_BYTES:
            yield bytes(kept[:CHUNK_BYTES])
            del kept[:CHUNK_BYTES]
    if kept:
        yield bytes(kept)


async def _delete_upload(database: Database, import_id: int) -> None:
    """Delete what came of an upload that has broken off; if that fails, `tidy` does it later."""
    # Once it waits for its job, it has not broken off: only the answer has.
    broken_off = delete(Import).where(Import.id == import_id, Import.state == RECEIVING)
    try:
        async with database.write() as session:
            await session.execute(broken_off)
    except DatabaseUnavailableError as error:
        log.warning("deleting an incomplete upload failed", reason=str(error))
