"""Child processes that are ended in order, and do not outlive us."""

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
    hurry: asyncio.Event,
    piped: bool = False,
) -> AsyncIterator[Process]:
    """Run a process in a session of its own, and stop it at the end.

    The terminal's Ctrl-C reaches only us, who end the children one after the other.

    Args:
        command: the program and its arguments.
        environment: all of its environment.
        seconds: how long it may take to end, before it is killed.
        hurry: does not wait that long once this is set.
        piped: give it a pipe as input, which ends when we die, and read its output through one.
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
        await stop(process, seconds, hurry)


async def stop(process: Process, seconds: float, hurry: asyncio.Event) -> None:
    """Ask a process to end, and kill what is left of it and its own children."""
    if process.returncode is None:
        process.terminate()
        waiting = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(hurry.wait())]
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
    with suppress(ProcessLookupError):  # nothing is left, as it should be
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
