"""A job runner in the background of a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quart_upsun.jobs.runner import Runner


@asynccontextmanager
async def working(runner: Runner) -> AsyncIterator[None]:
    """Run jobs in the background. At the end, stop the runner and wait for it."""
    running = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        runner.stop()
        async with asyncio.timeout(30):
            await running
