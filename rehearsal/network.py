"""Ports on 127.0.0.1."""

import asyncio
import resource
import socket
from collections.abc import Callable
from contextlib import suppress

POLL_SECONDS = 0.01
FILES = 16384  # two for each request that is held, and there are some thousands


class Ports:
    """Ports that nobody else on this machine is given meanwhile.

    Each is bound by a socket that does not listen, so that connections are refused until a server
    listens which sets SO_REUSEADDR, as servers do.
    """

    def __init__(self) -> None:
        self._holders: list[socket.socket] = []

    def reserve(self, preferred: int = 0) -> int:
        """Return a free port, the preferred one if it is free."""
        for port in dict.fromkeys((preferred, 0)):
            holder = socket.socket()
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:
                holder.close()
                continue
            self._holders.append(holder)
            return int(holder.getsockname()[1])
        raise OSError("no TCP port is free")

    def close(self) -> None:
        for holder in self._holders:
            holder.close()


def raise_file_limit() -> int:
    """Let this process and its children open as many files as they may; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return FILES if soft == resource.RLIM_INFINITY else min(FILES, soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


async def accepts(
    address: int | str, seconds: float, alive: Callable[[], bool] = lambda: True
) -> bool:
    """Wait until somebody accepts connections on a port or a Unix socket; tell whether they do.

    Args:
        address: a port of 127.0.0.1, or the path of a Unix socket.
        seconds: how long to wait.
        alive: whether there is still hope.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while alive() and loop.time() < deadline:
        with suppress(OSError):
            if isinstance(address, int):
                _, writer = await asyncio.open_connection("127.0.0.1", address)
            else:
                _, writer = await asyncio.open_unix_connection(address)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return True
        await asyncio.sleep(POLL_SECONDS)
    return False
