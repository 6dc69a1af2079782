"""Let clients read what they have written, although the read replica is a little behind.

After a change, a browser gets a cookie with the position of the log, which its next requests send.
For a client with an access token, the position is stored with the user, and read with the token.
Both are needed for `POSITION_SECONDS` only: then the replica has caught up, or is not used.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextvars import Context

import asyncpg
from quart import Quart, Response, current_app, g
from quart.globals import request_ctx

from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.database.log_position import (
    DELETE_EXPIRED,
    MAX_POSITION,
    POSITION_SECONDS,
    RECORD_POSITION,
    SELECT_POSITION,
    Reads,
    current_reads,
)
from quart_upsun.database.replica import Replica
from quart_upsun.http.cookies import set_cookie
from quart_upsun.logging import get_logger
from quart_upsun.security.signing import sign, verify

log = get_logger(__name__)

PURPOSE = "read position"
CLEANUP_PROBABILITY = 0.01  # share of the changes with a token that also delete expired positions


def init_app(app: Quart, database: Database, replica: Replica) -> None:
    """Watch the replica while the application serves, and add the request hooks.

    Call it before other request hooks are added, so that they may read, and so that the response's
    `Cache-Control` header is known.
    """

    @app.while_serving
    async def watch() -> AsyncGenerator[None, None]:
        watching = asyncio.create_task(replica.watch(), context=Context())
        yield
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    @app.before_request
    async def begin() -> None:
        current_reads.set(Reads(position_of_cookie()))

    @app.after_request
    async def finish(response: Response) -> Response:
        reads = current_reads.get()
        if reads is None or not reads.has_written:
            return response
        caller = g.get("caller")
        if caller is not None and caller.via == "token":
            await record_position(database, caller.id)
        elif "no-store" in response.headers.get("Cache-Control", ""):
            # A response that caches may store must not contain a cookie of one client.
            position = sign(PURPOSE, await newest_position(database))
            name = current_app.config["POSITION_COOKIE_NAME"]
            set_cookie(response, name, position, max_age=POSITION_SECONDS)
        return response


def position_of_cookie() -> int:
    """Return the position that the reads of this request must include; 0 without a valid cookie.

    A browser can only send what this site has signed a few seconds ago. A position that the
    replica does not reach costs a short wait, and is then read from the primary.
    """
    token = request_ctx.request.cookies.get(current_app.config["POSITION_COOKIE_NAME"])
    if not token:
        return 0
    position = verify(PURPOSE, token, max_age=POSITION_SECONDS)
    return position if isinstance(position, int) else 0


async def newest_position(database: Database) -> int:
    """Return the position of the primary, after this request's changes.

    It is read at the end of the request, because another response of the same browser may replace
    the cookie. If the primary does not answer, its next reads go to the primary in any case.
    """
    try:
        async with database.direct(exact=True) as connection:
            position: int = await connection.fetchval(SELECT_POSITION)
    except (DatabaseUnavailableError, asyncpg.PostgresError):
        return MAX_POSITION
    return position


async def record_position(database: Database, user_id: int) -> None:
    """Store the position of the primary for the user of an access token."""
    try:
        async with database.direct(exact=True) as connection:
            await connection.execute(RECORD_POSITION, user_id)
            if random.random() < CLEANUP_PROBABILITY:  # noqa: S311
                await connection.execute(DELETE_EXPIRED)
    except (DatabaseUnavailableError, asyncpg.PostgresError) as error:
        # The change is made, and the client must learn so.
        log.warning("read position not stored", user_id=user_id, reason=str(error))
