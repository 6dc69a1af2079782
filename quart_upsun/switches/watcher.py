"""Follow the table of switches: a notification for each change, and a slow poll as a safety net."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

import asyncpg
from quart import Quart
from sqlalchemy import URL

from quart_upsun.database import NoConnectionError, TransactionPoolingError, connect
from quart_upsun.logging import get_logger
from quart_upsun.switches.state import Switches

log = get_logger(__name__)

APPLICATION_NAME = "quart-upsun switches"
CHANNEL = "switches"
SELECT = "SELECT name, message, retry_after_seconds, since FROM switches"

# Also finds a network that silently drops packets, and changes without a notification, such as
# those of `quart sanitize`.
POLL_SECONDS = 5.0
STATEMENT_TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS = (0.1, 5.0)  # the first and the longest delay before reconnecting


async def watch(url: URL, switches: Switches) -> None:
    """Keep `switches` up to date until cancelled. Reconnect with backoff."""
    shortest, longest = BACKOFF_SECONDS
    delay, is_logged = shortest, False
    while True:
        try:
            connection = await connect(
                url, name=APPLICATION_NAME, command_timeout=STATEMENT_TIMEOUT_SECONDS
            )
            try:
                changed = await _listen(connection)
                await _read(connection, switches)
                delay, is_logged = shortest, False
                while not connection.is_closed():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), POLL_SECONDS)
                    changed.clear()
                    await _read(connection, switches)
                reason = "closed"
            finally:
                with suppress(Exception):
                    await connection.close(timeout=1)
        except TransactionPoolingError as error:
            reason = str(error)
            if not is_logged:  # for live events and jobs too: each process has this listener
                log.error("direct connection missing", reason=reason, remedy=error.remedy)
        except NoConnectionError as error:
            reason = str(error)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            reason = type(error).__name__
        switches.give_up()
        if not is_logged:  # when the outage begins, not at every attempt
            log.warning("switches listener disconnected", reason=reason)
            is_logged = True
        # Jitter, so that processes do not reconnect at once.
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
        delay = min(2 * delay, longest)


async def _listen(connection: Any) -> asyncio.Event:
    """Start listening; return an event that is set by a change, and by the connection's end."""
    changed = asyncio.Event()
    connection.add_termination_listener(lambda _: changed.set())
    await connection.add_listener(CHANNEL, lambda *_: changed.set())
    return changed


async def _read(connection: Any, switches: Switches) -> None:
    try:
        switches.update(await connection.fetch(SELECT))
    except asyncpg.UndefinedTableError:
        # The process has started before the migrations of its release.
        switches.update([])


def init_app(
    app: Quart, url: URL, switches: Switches, *, maintenance_began: Callable[[], None]
) -> None:
    """Watch the switches while the application serves or runs jobs.

    Args:
        app: the application.
        url: the database.
        switches: the state of this process.
        maintenance_began: called each time that maintenance is switched on.
    """

    @app.while_serving
    async def serve() -> AsyncGenerator[None, None]:
        switches.expect(maintenance_began)
        watching = asyncio.create_task(watch(url, switches), context=Context())
        yield
        watching.cancel()
        # asyncpg answers a cancellation at the wrong moment with an error of its own.
        await asyncio.gather(watching, return_exceptions=True)
