"""Reserve ports on 127.0.0.1, and wait until a server accepts connections."""

import asyncio
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import cache

POLL_SECONDS = 0.01
CONNECT_SECONDS = 3
MAX_OPEN_FILES = 16384  # two for each held request, of which there are thousands


class Ports:
    """Reserved ports, which the system does not assign to other programs.

    A socket that does not listen is bound to each port. Connections are refused until a server
    listens there; it must set SO_REUSEADDR, as servers usually do.
    """

    def __init__(self) -> None:
        self._holders: list[socket.socket] = []

    def reserve(self, preferred: int = 0) -> int:
        """Reserve and return a free port, the preferred one if it is free."""
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
    """Raise the open file limit of this process and its children; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


async def accepts(
    address: int | str, seconds: float, alive: Callable[[], bool] = lambda: True
) -> bool:
    """Wait until a server accepts connections on a port or Unix socket; return whether it does.

    Args:
        address: a port on 127.0.0.1, or the path of a Unix socket.
        seconds: the timeout.
        alive: whether the server is still running; waiting ends when it returns False.
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


@cache
def is_reachable(host: str) -> bool:
    """Return whether this machine can connect to an HTTPS server."""
    with suppress(OSError):
        socket.create_connection((host, 443), CONNECT_SECONDS).close()
        return True
    return False
