"""Limit concurrent fetches per host for background jobs. See `turns` for the waiting lines."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from quart import Quart

from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.fetching.fetcher import Fetcher
from quart_upsun.fetching.turns import CALL_TIMEOUT_SECONDS, HostBusyError, Visit
from quart_upsun.jobs.queue import JobContext, JobPostponedError, make_due
from quart_upsun.logging import get_logger

log = get_logger(__name__)


def init_app(app: Quart) -> None:
    """Create `app.extensions["fetcher"]` when the application starts, and close it at the end.

    The application needs `QuartUpsun`, whose database is used to call waiting jobs.
    """

    @app.while_serving
    async def fetcher() -> AsyncGenerator[None, None]:
        async with Fetcher() as app.extensions["fetcher"]:
            calling = asyncio.create_task(_keep_calling(app))
            yield
            calling.cancel()


@asynccontextmanager
async def turn(running: JobContext, fetcher: Fetcher, *, owner: int = 0) -> AsyncIterator[Visit]:
    """Open a visit for a job. When it ends, the next jobs that wait for its hosts become due.

    Pass the visit to `fetch_page`, or to `Fetcher.get` with `max_wait=0`.

    Args:
        running: the context of the job.
        fetcher: the fetcher that the job uses.
        owner: the user for whom the job fetches. Jobs of the same priority are served round-robin
            by owner.

    Raises:
        JobPostponedError: the host has no free turn. The job goes back to the queue.
    """
    visit = Visit(fetcher.turns)
    try:
        with visit:
            yield visit
    except HostBusyError as busy:
        wait = fetcher.turns.longest_wait(busy.host)
        raise JobPostponedError(
            wait, partial(_join_queue, running, fetcher, busy.host, owner)
        ) from None
    finally:
        for host in visit.hosts:
            await _call_next(running.database, fetcher, host)


async def _join_queue(running: JobContext, fetcher: Fetcher, host: str, owner: int) -> None:
    """Add a postponed job to the host's waiting line."""
    fetcher.turns.line_up(host, running.id, priority=running.priority, owner=owner)
    if fetcher.turns.has_room(host):  # a turn became free meanwhile, and nothing else would call
        await _call_next(running.database, fetcher, host)


async def _call_next(database: Database, fetcher: Fetcher, host: str) -> None:
    """Make the first waiting job of a host due, if there is one."""
    with suppress(DatabaseUnavailableError):  # the job becomes due by itself later
        while (job := fetcher.turns.next_in_line(host)) is not None:
            if await make_due(database, [job]):  # else it is deleted, or runs in another process
                return


async def _keep_calling(app: Quart) -> None:
    """Call the next job of each host whose called job did not arrive in this process."""
    while True:
        await asyncio.sleep(CALL_TIMEOUT_SECONDS)
        # Looked up each time, because tests replace it.
        fetcher: Fetcher = app.extensions["fetcher"]
        for host in fetcher.turns.idle():
            try:
                await _call_next(app.extensions["quart_upsun"].database, fetcher, host)
            except Exception:  # continue with the next host, and retry in a second
                log.exception("waking a postponed job failed")
