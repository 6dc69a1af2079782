"""Tell the open operations pages of this process that there is new data."""

import asyncio
from collections.abc import AsyncGenerator
from contextvars import Context

from quart import Quart

from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.live.events import publish
from quart_upsun.live.hub import Hub
from quart_upsun.metrics.collector import FLUSH_SECONDS

KIND = "operations"


class Updates:
    """Publishes an event for each administrator with an open page, while there is one.

    Args:
        database: the database.
        live: the open streams of this process.
    """

    def __init__(self, database: Database, live: Hub) -> None:
        self.seconds = FLUSH_SECONDS
        self._database = database
        self._live = live
        self._users: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def watch(self, user_id: int) -> None:
        """Publish events for a user until the user's last stream in this process ends."""
        self._users.add(user_id)
        if self._task is None or self._task.done():
            # In an empty context; otherwise it would keep the one of this request.
            self._task = asyncio.create_task(self._publish(), context=Context())

    async def close(self) -> None:
        """Stop publishing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(self.seconds)
            self._users = {each for each in self._users if self._live.has_streams(each)}
            if not self._users:
                return
            try:
                for user_id in sorted(self._users):
                    async with self._database.write() as session:
                        await publish(session, user_id, KIND)
            except DatabaseUnavailableError:
                pass  # logged by the gate; the page shows the next event


def init_app(app: Quart) -> Updates:
    """Create the updates, and end them with the application."""
    state = app.extensions["quart_upsun"]
    updates = Updates(state.database, state.live)

    @app.while_serving
    async def serve() -> AsyncGenerator[None, None]:
        yield
        await updates.close()

    return updates
