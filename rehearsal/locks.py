"""File locks and persistent secrets, shared by all rehearsals on this machine.

The kernel releases a lock when its process ends.
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
    """Hold an exclusive lock; wait while another process holds it.

    Args:
        path: the lock file, created if it does not exist.
        waiting: called once if another process holds the lock, with that process's id.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        reported = False
        while not _try(descriptor):
            if not reported:
                reported = True
                waiting(os.pread(descriptor, 4096, 0).decode())
            await asyncio.sleep(POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(path: Path) -> int | None:
    """Return the id of the process that holds the lock; None if it is free."""
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
    """Return the secret in `file`; create the file with the secret `new` if it does not exist."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as text:
            text.write(new)
        # Atomic, and only if no other process was faster.
        with suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
    return file.read_text()
