"""What rehearsals on this machine share: locks, and a word that is made once.

The locks are the kernel's, and end with the process that has them.
"""

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.1


@asynccontextmanager
async def locked(
    path: Path, waiting: Callable[[str], None] = lambda holder: None
) -> AsyncIterator[None]:
    """Hold a lock; whoever comes second waits.

    Args:
        path: a file that is made for it.
        waiting: called once, if somebody else has it, with what that one has written there.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        told = False
        while not _try(descriptor):
            if not told:
                told = True
                waiting(os.pread(descriptor, 4096, 0).decode())
            await asyncio.sleep(POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(path: Path) -> int | None:
    """Return the number of the process that has the lock; None if nobody has it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        if _try(descriptor):
            return None
        return int(os.pread(descriptor, 4096, 0) or b"0") or None
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def persistent_secret(file: Path, new: str) -> str:
    """Return the word in a file; `new`, from then on, if there is no such file."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as text:
            text.write(new)
        # Whole at once, and only if nobody was quicker.
        with suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
    return file.read_text()
