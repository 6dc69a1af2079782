"""Give jobs their turn at a host; see `turns` for how the waiting line works."""

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
    """Set up `app.extensions["fetcher"]` while the application is served.

    It needs `app.extensions["quart_upsun"].database` to call the jobs that wait for a host.
    """

    @app.while_serving
    async def fetcher() -> AsyncGenerator[None, None]:
        async with Fetcher() as app.extensions["fetcher"]:
            calling = asyncio.create_task(_keep_calling(app))
            yield
            calling.cancel()


@asynccontextmanager
async def turn(running: JobContext, fetcher: Fetcher, *, owner: int = 0) -> AsyncIterator[Visit]:
    """Give a job a visit to hosts; at its end the next waiting jobs of these hosts may run.

    Args:
        running: the job.
        fetcher: whose turns these are; pass the visit to its `get` with `patience=0`.
        owner: for whom the job fetches. Within a priority, owners take turns.

    Raises:
        Postponed: the host has no free turn, so the job is queued again until it is called.
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
    """Let a fetch that leaves the host call this job, which is back in the queue."""
    fetcher.turns.line_up(host, running.id, priority=running.priority, owner=owner)
    if fetcher.turns.has_room(host):  # since a moment ago: nobody else is going to call
        await _call_next(running.database, fetcher, host)


async def _call_next(database: Database, fetcher: Fetcher, host: str) -> None:
    """Make the first job in the line of a host due, if there is one."""
    with suppress(DatabaseUnavailableError):  # then it becomes due by itself, a little later
        while (job := fetcher.turns.next_in_line(host)) is not None:
            if await make_due(database, [job]):  # else another process has it, or it is deleted
                return


async def _keep_calling(app: Quart) -> None:
    """Keep the lines moving whose called job did not come, or went to another process."""
    while True:
        await asyncio.sleep(CALL_TIMEOUT_SECONDS)
        # Looked up each time: tests put their own one there.
        fetcher: Fetcher = app.extensions["fetcher"]
        for host in fetcher.turns.idle():
            try:
                await _call_next(app.extensions["quart_upsun"].database, fetcher, host)
            except Exception:  # the next host, and the next second, may have more luck
                log.exception("waking a postponed job failed")
