"""The connection of a process on which PostgreSQL tells who has news."""

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

# Seconds. A network that drops packets is silent, as is a database where nothing happens; the
# question tells them apart.
PING_INTERVAL_SECONDS = 15.0
PING_TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS = (
    0.1,
    5.0,
)  # seconds until the first attempt to connect again, and the longest pause


class Listener:
    """Listens, whatever happens to the database.

    Args:
        url: of the database.
        heard: told the number of each user who has news.
        connected: told each time that this listens again: news of before were perhaps missed.
    """

    def __init__(
        self, url: URL, *, heard: Callable[[int], None], connected: Callable[[], None]
    ) -> None:
        self._url = url
        self._heard = heard
        self._connected = connected

    async def run(self) -> None:
        """Listen until cancelled."""
        shortest, longest = BACKOFF_SECONDS
        pause, was_lost = shortest, False
        while True:
            try:
                connection = await connect(
                    self._url, name=APPLICATION_NAME, command_timeout=PING_TIMEOUT_SECONDS
                )
                try:
                    ended = await self._listen(connection)
                    log.info("live events listener connected", reconnected=was_lost)
                    pause, was_lost = shortest, True
                    self._connected()
                    await self._watch(connection, ended)
                finally:
                    await _close(connection)
                reason = "closed"
            except NoConnectionError as error:
                reason = str(error)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                reason = type(error).__name__
            if pause == shortest:  # when it begins, not at every attempt
                log.warning("live events listener disconnected", reason=reason)
            was_lost = True
            # Not all processes at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, longest)

    async def _listen(self, connection: Any) -> asyncio.Event:
        """Return what is set when the connection has ended."""
        ended = asyncio.Event()

        def notified(_: Any, pid: int, channel: str, payload: str) -> None:
            if payload.isdecimal():
                self._heard(int(payload))

        connection.add_termination_listener(lambda _: ended.set())
        await connection.add_listener(CHANNEL, notified)
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
