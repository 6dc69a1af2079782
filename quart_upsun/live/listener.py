"""The connection on which a process listens for PostgreSQL's notifications about new events."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
from sqlalchemy import URL

from quart_upsun.database import NoConnectionError, connect
from quart_upsun.live.events import CHANNEL
from quart_upsun.logging import get_logger

log = get_logger(__name__)

APPLICATION_NAME = "quart-upsun live"

# A ping detects a network that silently drops packets.
PING_INTERVAL_SECONDS = 15.0
PING_TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS = (0.1, 5.0)  # the first and the longest delay before reconnecting


class Listener:
    """Listens for notifications, and reconnects with backoff.

    Args:
        url: the database.
        notified: called with the id of a user who has new events.
        connected: called after each connect, because notifications may have been missed before.
    """

    def __init__(
        self, url: URL, *, notified: Callable[[int], None], connected: Callable[[], None]
    ) -> None:
        self._url = url
        self._notified = notified
        self._connected = connected

    async def run(self) -> None:
        """Listen until cancelled."""
        shortest, longest = BACKOFF_SECONDS
        delay, was_lost = shortest, False
        while True:
            try:
                connection = await connect(
                    self._url, name=APPLICATION_NAME, command_timeout=PING_TIMEOUT_SECONDS
                )
                try:
                    ended = await self._listen(connection)
                    log.info("live events listener connected", reconnected=was_lost)
                    delay, was_lost = shortest, True
                    self._connected()
                    await self._watch(connection, ended)
                finally:
                    await _close(connection)
                reason = "closed"
            except NoConnectionError as error:
                reason = str(error)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                reason = type(error).__name__
            if delay == shortest:  # when the outage begins, not at every attempt
                log.warning("live events listener disconnected", reason=reason)
            was_lost = True
            # Jitter, so that processes do not reconnect at once.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
            delay = min(2 * delay, longest)

    async def _listen(self, connection: Any) -> asyncio.Event:
        """Start listening; return an event that is set when the connection has ended."""
        ended = asyncio.Event()

        def forward(_: Any, pid: int, channel: str, payload: str) -> None:
            if payload.isdecimal():
                self._notified(int(payload))

        connection.add_termination_listener(lambda _: ended.set())
        await connection.add_listener(CHANNEL, forward)
        return ended

    async def _watch(self, connection: Any, ended: asyncio.Event) -> None:
        while not ended.is_set():
            try:
                await asyncio.wait_for(ended.wait(), PING_INTERVAL_SECONDS)
            except TimeoutError:
                await connection.execute("SELECT 1")


async def _close(connection: Any) -> None:
    with suppress(Exception):
        await connection.close(timeout=1)
