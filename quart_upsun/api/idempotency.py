"""Idempotent requests: `Idempotency-Key`.

A client that did not receive a response retries its request with the same key, and gets the stored
response of the first. The response is stored in the same transaction as the change, so there is
never one without the other. https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import wraps
from typing import Any, cast

from quart import Response, request
from sqlalchemy import bindparam, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.api.auth import current_caller
from quart_upsun.api.models import KEY_LENGTH, IdempotentAnswer
from quart_upsun.api.problems import Problem
from quart_upsun.database import Base, LockTimeoutError, write
from quart_upsun.jobs import cleanup
from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.policy import declare

KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_LENGTH}}}\Z")
KEPT_HEADERS = ("Content-Type", "Location", "ETag")
RETENTION = timedelta(hours=24)

_answers = Base.metadata.tables[IdempotentAnswer.__tablename__]
_mine = (_answers.c.user_id == bindparam("id"), _answers.c.key == bindparam("name"))
# A concurrent request with the same key waits here for the first: the primary key conflicts.
CLAIM = (
    insert(_answers)
    .values(status=0, headers=[], body="")
    .on_conflict_do_nothing()
    .returning(_answers.c.key)
)
KEEP = update(_answers).where(*_mine)
FIND = select(_answers.c.fingerprint, _answers.c.status, _answers.c.headers, _answers.c.body).where(
    *_mine
)
OLD = delete(_answers).where(
    tuple_(_answers.c.user_id, _answers.c.key).in_(
        select(_answers.c.user_id, _answers.c.key)
        .where(_answers.c.created_at < func.now() - RETENTION)
        .order_by(_answers.c.created_at)
        .limit(cleanup.BATCH_SIZE)
        .with_for_update(skip_locked=True)
    )
)


def idempotent(view: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """Pass the view a transaction as `session`, and run it once per `Idempotency-Key`.

    Status, body, `Content-Type`, `Location` and `ETag` of the response are stored in the same
    transaction. If the view raises, all of it is rolled back, and the client can retry with the
    same key.

    Place it below `@scope_required` and `@validate_json`, so that no connection is held while the
    body arrives.
    """

    @wraps(view)
    async def once(*args: Any, **kwargs: Any) -> Response:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            async with write() as session:
                return await view(*args, session=session, **kwargs)
        if not KEY.match(key):
            raise Problem(
                400, f"Idempotency-Key must be 1 to {KEY_LENGTH} visible ASCII characters."
            )
        fingerprint = await _fingerprint()
        async with write() as session:
            if not await _claim(session, key, fingerprint):
                return await _replay(session, key, fingerprint)
            response = await view(*args, session=session, **kwargs)
            await _keep(session, key, response)
        return response

    return declare(once, is_idempotent=True)


async def delete_expired_responses(running: JobContext) -> None:
    """Delete expired responses in batches."""
    await cleanup.delete_in_batches(running.database, OLD)


FORGET = Schedule(
    Task("forget old answers", delete_expired_responses, timeout=cleanup.TIMEOUT_SECONDS),
    "47 * * * *",
)


async def _fingerprint() -> bytes:
    """Return a digest of the request: method, URL and body."""
    digest = hashlib.sha256(f"{request.method} {request.full_path}\n".encode())
    digest.update(cast(bytes, await request.get_data()))
    return digest.digest()


async def _claim(session: AsyncSession, key: str, fingerprint: bytes) -> bool:
    """Claim the key; return False if another request has used it.

    Raises:
        Problem: 409 if waiting for the first request timed out.
    """
    values = {"user_id": current_caller().id, "key": key, "fingerprint": fingerprint}
    try:
        return await session.scalar(CLAIM, values) is not None
    except LockTimeoutError:
        raise Problem(
            409,
            "The first request with this Idempotency-Key is still in progress. Retry later.",
            headers={"Retry-After": "1"},
        ) from None


async def _replay(session: AsyncSession, key: str, fingerprint: bytes) -> Response:
    found = (await session.execute(FIND, {"id": current_caller().id, "name": key})).one_or_none()
    if found is None:  # it has just expired
        raise Problem(409, "The Idempotency-Key has expired. Retry the request.")
    if found.fingerprint != fingerprint:
        raise Problem(422, "This Idempotency-Key was already used for a different request.")
    response = Response(found.body, found.status)
    response.headers.update(zip(found.headers[::2], found.headers[1::2], strict=True))
    response.headers["Idempotency-Replayed"] = "true"
    return response


async def _keep(session: AsyncSession, key: str, response: Response) -> None:
    kept = [(name, response.headers[name]) for name in KEPT_HEADERS if name in response.headers]
    await session.execute(
        KEEP.values(
            status=response.status_code,
            headers=[each for pair in kept for each in pair],
            body=await response.get_data(as_text=True),
        ),
        {"id": current_caller().id, "name": key},
    )
