"""Store an uploaded bookmark file in chunks until a background job has read it.

It is stored in the database because the worker and the web container share no disk.
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
from app.links.hooks import announce_change
from app.user.models import User
from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.http.bodies import BodyLimit
from quart_upsun.jobs.queue import enqueue
from quart_upsun.logging import get_logger

log = get_logger(__name__)

MAX_FILE_BYTES = 32 * 1024 * 1024
UPLOAD_TIMEOUT_SECONDS = 300.0
# Each chunk is one row and one transaction: small enough to parse quickly, large enough to be few.
CHUNK_BYTES = 256 * 1024

FILE_BODY_LIMIT = BodyLimit(MAX_FILE_BYTES, UPLOAD_TIMEOUT_SECONDS)
# The form has a multipart envelope around the file.
FORM_BODY_LIMIT = BodyLimit(MAX_FILE_BYTES + 64 * 1024, UPLOAD_TIMEOUT_SECONDS)


class ImportInProgressError(Exception):
    """The user already has an unfinished import."""


class EmptyFileError(Exception):
    """No file was sent, or it is empty."""


class AccountDeletedError(Exception):
    """The account was deleted during the upload."""


async def receive_upload(database: Database, user_id: int, chunks: AsyncIterator[bytes]) -> int:
    """Store a file while it is received, and enqueue the import; return the id of the import.

    Each chunk is stored in its own transaction, and no connection is held while the next chunk
    arrives. The last transaction enqueues the job. If the upload fails, its chunks are deleted.

    Args:
        database: where the chunks are stored.
        user_id: the owner.
        chunks: the content of the file.

    Raises:
        ImportInProgressError: the user has another unfinished import.
        EmptyFileError: the file is empty.
        AccountDeletedError: the user's account was deleted during the upload.
        RequestEntityTooLarge: the file is larger than 32 MiB.
        Exception: whatever `chunks` raises.
    """
    try:
        return await _store_upload(database, user_id, chunks)
    except (IntegrityError, NoResultFound):  # the rows were deleted with their user
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
    # The lock serializes concurrent uploads of a user, which would not see each other.
    await session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    lost = Import.created_at < func.now() - STALE_UPLOAD_AGE
    mine = Import.user_id == user_id
    await session.execute(delete(Import).where(mine, Import.state == RECEIVING, lost))
    if await session.scalar(select(Import.id).where(mine, Import.state.in_(UNFINISHED)).limit(1)):
        raise ImportInProgressError
    new = insert(Import).values(user_id=user_id, state=RECEIVING, size=0).returning(Import.id)
    return (await session.execute(new)).scalar_one()


async def _enqueue_import(session: AsyncSession, user_id: int, import_id: int, size: int) -> None:
    """Mark the upload as complete, and enqueue the import."""
    completed = (
        update(Import)
        .where(Import.id == import_id)
        .values(state=WAITING, size=size)
        .returning(*COLUMNS)
        .execution_options(synchronize_session=False)
    )
    progress = ImportProgress(*(await session.execute(completed)).one())
    await enqueue(session, IMPORT_TASK, key=f"{IMPORT_TASK.name} {import_id}", id=import_id)
    await announce_change(session, user_id, "import", **progress_event(progress))


async def _rechunk(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same content in chunks of `CHUNK_BYTES`."""
    buffer = bytearray()
    async for content in chunks:
        buffer += content
        while len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES])
            del buffer[:CHUNK_BYTES]
    if buffer:
        yield bytes(buffer)


async def _delete_upload(database: Database, import_id: int) -> None:
    """Delete an aborted upload; if that fails, `clean_up_imports` does it later."""
    # An upload that is already enqueued is complete, even if the response could not be sent.
    aborted = delete(Import).where(Import.id == import_id, Import.state == RECEIVING)
    try:
        async with database.write() as session:
            await session.execute(aborted)
    except DatabaseUnavailableError as error:
        log.warning("deleting an incomplete upload failed", reason=str(error))
