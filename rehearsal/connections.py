"""Count the connections to PostgreSQL by container, and compute how many a project may need."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import asyncpg

from rehearsal.findings import Finding, Severity, count
from rehearsal.project import Connections
from rehearsal.services import Databases
from rehearsal.services.postgresql import Connection

WEB = "web"  # the process of a web container, beside the names of workers
TIMEOUT_SECONDS = 2
ESTABLISHED = "01"  # https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html
# In a rolling deploy, a release and its clone run at the same time, and then the clone and the
# next release.
RELEASES = 2

CLIENTS = """
    SELECT client_port FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
# Without those that are reserved for superusers, such as the rehearsal.
LIMIT = """
    SELECT current_setting('max_connections')::int,
        current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0)
"""


Owner: TypeAlias = tuple[str, int]
"""The name of a container, and the ID of one of its processes."""


class HasProcesses(Protocol):
    def pids(self) -> list[int]: ...


@dataclass
class Sample:
    """The connections to all PostgreSQL servers at one time."""

    total: int
    by_container: Mapping[str, Counter[int]]
    """The connections of each container, by process ID."""
    others: int
    """Those of hooks, crons and whatever else connects."""


class Counting:
    """Counts connections, without those of the rehearsal itself."""

    def __init__(self) -> None:
        self.limit = 0
        """The limit of all servers together; 0 if there is none."""
        self.reserved = 0
        """How many of them are reserved for superusers."""
        self._open: dict[str, Connection] = {}
        self._owners: dict[int, Owner | None] = {}
        """The container and the process of each client port; None if it has another owner."""

    async def sample(
        self, servers: Iterable[Databases], containers: Mapping[str, HasProcesses]
    ) -> Sample | None:
        """Count the connections now.

        Args:
            servers: the running servers.
            containers: the containers, by name.

        Returns:
            The numbers; None without a server, or if one does not answer.
        """
        ports: list[int] = []
        limit = reserved = 0
        server_ports = []
        for server in servers:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    connection = self._open.get(server.url)
                    if connection is None or connection.is_closed():
                        connection = await server.connect("postgres")
                        self._open[server.url] = connection
                    rows = await connection.fetch(CLIENTS)
                    allowed, kept = await connection.fetchrow(LIMIT) or (0, 0)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return None  # refused on purpose, or the server is ending
            ports += [row["client_port"] for row in rows]
            limit, reserved = limit + allowed, reserved + kept
            server_ports.append(server.port)
        if not server_ports:
            return None
        self.limit, self.reserved = limit, reserved
        self._owners = {port: self._owners[port] for port in ports if port in self._owners}
        if unknown := set(ports) - set(self._owners):
            found = await asyncio.to_thread(owners, server_ports, containers)
            self._owners |= {port: found.get(port) for port in unknown}
        own: set[int] = set()
        if any(self._owners[port] is None for port in ports):
            own = await asyncio.to_thread(own_ports, server_ports)
        return tally([port for port in ports if port not in own], self._owners)

    async def close(self) -> None:
        for connection in self._open.values():
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                await connection.close(timeout=TIMEOUT_SECONDS)
        self._open.clear()


def tally(ports: Iterable[int], owners: Mapping[int, Owner | None]) -> Sample:
    """Count connections by their owner."""
    by_container: dict[str, Counter[int]] = {}
    total = others = 0
    for port in ports:
        total += 1
        owner = owners[port]
        if owner is None:
            others += 1
        else:
            by_container.setdefault(owner[0], Counter())[owner[1]] += 1
    return Sample(total, by_container, others)


def owners(server_ports: Iterable[int], containers: Mapping[str, HasProcesses]) -> dict[int, Owner]:
    """Return the container and the process of each connection to a server, by its local port.

    Only Linux has what it reads. Elsewhere, the owners are unknown.
    """
    sockets = client_sockets(server_ports)
    found = {}
    for name, container in containers.items():
        for pid in container.pids():
            for inode in socket_inodes(pid):
                if inode in sockets:
                    found[sockets[inode]] = (name, pid)
    return found


def own_ports(server_ports: Iterable[int]) -> set[int]:
    """Return the local ports of this process's connections to the servers."""
    sockets = client_sockets(server_ports)
    return {sockets[inode] for inode in socket_inodes("self") if inode in sockets}


def client_sockets(server_ports: Iterable[int]) -> dict[str, int]:
    """Return the local port of each connection to a server on this machine, by its inode."""
    ports = "|".join(f"{port:04X}" for port in server_ports)
    # A busy machine has thousands of lines; see the link above for their format.
    line = re.compile(
        rf":([0-9A-F]{{4}}) [0-9A-F]{{8}}:(?:{ports}) {ESTABLISHED} \S+ \S+ \S+ +\d+ +\d+ (\d+)"
    )
    sockets = {}
    with suppress(OSError):
        for match in line.finditer(Path("/proc/net/tcp").read_text()):
            sockets[match[2]] = int(match[1], 16)
    return sockets


def socket_inodes(process: int | str) -> list[str]:
    """Return the inodes of a process's sockets; none if it has ended."""
    inodes = []
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    inodes.append(target[8:-1])
    return inodes


@dataclass
class Use:
    """The most connections that the containers of one kind had, each at the same time."""

    connections: int = 0
    processes: int = 0
    """The number of processes of a container that had some of them."""

    def add(self, connections: int, processes: int) -> None:
        """Take a measurement into account."""
        self.connections = max(self.connections, connections)
        self.processes = max(self.processes, processes)


@dataclass(frozen=True)
class Demand:
    """The connections that a project may need during a rolling deploy."""

    instances: int
    web: int
    """Of one instance of the application."""
    elsewhere: int
    """Of the workers, and of other applications."""
    hooks: int
    """Of hooks and crons."""
    pool: int | None
    """The size of each process's connection pool; None if it is not known."""

    @property
    def total(self) -> int:
        return RELEASES * (self.instances * self.web + self.elsewhere) + self.hooks

    def __str__(self) -> str:
        inner = f"{count(self.instances, 'instance')} x {self.web}"
        if self.elsewhere:
            inner += f" + {self.elsewhere} of workers"
        return f"{RELEASES} x ({inner})" + (f" + {self.hooks} of hooks" if self.hooks else "")


def demand(
    uses: Mapping[tuple[str, str], Use],
    hooks: int,
    *,
    application: str,
    instances: int,
    settings: Connections | None,
    pool: int,
) -> Demand:
    """Compute the connections that a project may need.

    Args:
        uses: what was measured, by application and `web` or the name of a worker.
        hooks: the most connections that hooks and crons had.
        application: the application that has several instances.
        instances: how many it may have.
        settings: the connections of its processes, if the project names them. A process may have
            used fewer here.
        pool: the size of their pools, with `settings`.
    """

    def most(key: tuple[str, str], use: Use) -> int:
        if settings is None or key[0] != application:
            return use.connections
        return max(use.connections, use.processes * (pool + settings.others))

    web = elsewhere = 0
    for key, use in uses.items():
        if key == (application, WEB):
            web = most(key, use)
        else:
            elsewhere += most(key, use)
    return Demand(instances, web, elsewhere, hooks, pool if settings else None)


def judge(
    uses: Mapping[tuple[str, str], Use],
    needed: Demand,
    usable: int,
    *,
    application: str,
    settings: Connections | None,
) -> list[Finding]:
    """Return a warning if the connections do not fit, with the pool size that would.

    Args:
        uses: what was measured; see `demand`.
        needed: what follows from it.
        usable: the number of connections that the server allows to the application.
        application: the application that has several instances.
        settings: the connections of its processes, if the project names them.
    """
    if needed.total <= usable:
        return []
    least = RELEASES * needed.elsewhere + needed.hooks
    if settings is None or needed.pool is None:
        share = (usable - least) // (RELEASES * needed.instances)
        fix = (
            f"limit the connection pools, so that an instance has at most {share} connections"
            if share > 0
            else ""
        )
    else:
        own = sum(
            use.processes * (needed.instances if process == WEB else 1)
            for (name, process), use in uses.items()
            if name == application
        )
        others = sum(use.connections for (name, _), use in uses.items() if name != application)
        left = usable - needed.hooks - RELEASES * others
        size = left // (RELEASES * own) - settings.others
        variable = settings.variable or "the size of the pool"
        fix = f"set {variable} to at most {size} instead of {needed.pool}" if size > 0 else ""
    return [
        Finding(
            "connections",
            f"{count(needed.instances, 'instance')} may need {needed.total} connections to"
            f" PostgreSQL during a rolling deploy, {needed}, and {usable} are allowed here",
            consequence="PostgreSQL refuses connections beyond its limit, and requests and hooks"
            " fail. On the platform the limit depends on the size of the service",
            fix=(fix or "use fewer instances, or a connection pooler")
            + "; read the limit with `upsun db:sql 'SHOW max_connections'`, and rehearse with"
            " --max-connections",
            severity=Severity.WARNING,
        )
    ]
