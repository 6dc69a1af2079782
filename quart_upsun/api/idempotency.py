"""The same request twice, done once: `Idempotency-Key`.

A client that did not see an answer sends its request again with the same key, and gets the answer
of the first. It is written in the transaction of the change it tells of, so there is never the one
without the other. https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
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
REMEMBERED = timedelta(hours=24)

_answers = Base.metadata.tables[IdempotentAnswer.__tablename__]
_mine = (_answers.c.user_id == bindparam("id"), _answers.c.key == bindparam("name"))
# Of two at once the second waits here for the end of the first: the primary key sees to it.
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
        .where(_answers.c.created_at < func.now() - REMEMBERED)
        .order_by(_answers.c.created_at)
        .limit(cleanup.BATCH_SIZE)
        .with_for_update(skip_locked=True)
    )
)


def idempotent(view: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """Give the view a transaction as `session`, and do a request with a key in it only once.

    The answer, of which status, body, `Location` and `ETag` are kept, is part of the transaction.
    What the view raises rolls it back as a whole: the client may try again with the same key.

    Stands below `@scope_required` and `@validate_json`: the body has arrived before a connection is
    taken.
    """

    @wraps(view)
    async def once(*args: Any, **kwargs: Any) -> Response:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            async with write() as session:
                return await view(*args, session=session, **kwargs)
        if not KEY.match(key):
            raise Problem(400, f"An Idempotency-Key is 1 to {KEY_LENGTH} visible ASCII characters.")
        fingerprint = await _fingerprint()
        async with write() as session:
            if not await _claim(session, key, fingerprint):
                return await _replay(session, key, fingerprint)
            response = await view(*args, session=session, **kwargs)
            await _keep(session, key, response)
        return response

    return declare(once, is_idempotent=True)


async def forget_old_answers(running: JobContext) -> None:
    """Delete answers that are older than a day, a few at a time."""
    await cleanup.delete_in_batches(running.database, OLD)


FORGET = Schedule(
    Task("forget old answers", forget_old_answers, timeout=cleanup.TIMEOUT_SECONDS), "47 * * * *"
)


async def _fingerprint() -> bytes:
    """Return a digest of what is asked for: method, address and body."""
    digest = hashlib.sha256(f"{request.method} {request.full_path}\n".encode())
    digest.update(cast(bytes, await request.get_data()))
    return digest.digest()


async def _claim(session: AsyncSession, key: str, fingerprint: bytes) -> bool:
    """Take the key; False if it was taken before.

    Raises:
        Problem: 409, the first request with it takes so long that this one has given up waiting.
    """
    values = {"user_id": current_caller().id, "key": key, "fingerprint": fingerprint}
    try:
        return await session.scalar(CLAIM, values) is not None
    except LockTimeoutError:
        raise Problem(
            409,
            "The first request with this Idempotency-Key is still being worked on.",
            headers={"Retry-After": "1"},
        ) from None


async def _replay(session: AsyncSession, key: str, fingerprint: bytes) -> Response:
    found = (await session.execute(FIND, {"id": current_caller().id, "name": key})).one_or_none()
    if found is None:  # it was a day old, and forgotten just now
        raise Problem(409, "The Idempotency-Key was forgotten just now: try again.")
    if found.fingerprint != fingerprint:
        raise Problem(422, "This Idempotency-Key was used for another request.")
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
