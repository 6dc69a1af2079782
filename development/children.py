"""Child processes that are stopped in order, and do not outlive their parent."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def child(
    *command: str,
    environment: Mapping[str, str],
    seconds: float,
    force_stop: asyncio.Event,
    piped: bool = False,
) -> AsyncIterator[Process]:
    """Run a child process in its own session; stop it on exit from the context.

    Ctrl-C in the terminal reaches only the parent, which then stops its children one by one.

    Args:
        command: the program and its arguments.
        environment: its complete environment.
        seconds: the grace period after SIGTERM, before it is killed.
        force_stop: when set, kill it without waiting.
        piped: read its output through a pipe, and give it a pipe as stdin, which closes when the
            parent dies.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=PIPE if piped else DEVNULL,
        stdout=PIPE if piped else None,
        stderr=STDOUT if piped else None,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await stop(process, seconds, force_stop)


async def stop(process: Process, seconds: float, force_stop: asyncio.Event) -> None:
    """Terminate a process; after the grace period, kill it and its children."""
    if process.returncode is None:
        process.terminate()
        waiting = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(force_stop.wait())]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
    with suppress(ProcessLookupError):  # no process of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
