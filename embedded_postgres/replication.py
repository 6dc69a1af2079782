"""A primary and its standby with streaming replication, for tests and benchmarks.

Unlike the servers of server.py, these belong to one process, which can stop, kill and freeze them.
"""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from embedded_postgres.keeper import NOBODY, PostgresError, as_server_user, free_port, is_ready
from embedded_postgres.server import NEW_OPTIONS, NOT_DURABLE, program

START_SECONDS = 60.0
STOP_SECONDS = 20.0


class Cluster:
    """One PostgreSQL server with its data directory.

    Args:
        directory: contains the data and the log.
        password: of the user `postgres`.

    Attributes:
        port: stays the same between starts.
    """

    def __init__(self, directory: Path, password: str) -> None:
        self.directory = directory
        self.data = directory / "data"
        self._password = password
        self.port = free_port(0)
        self._server: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        name = quote(database, safe="")
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{name}"

    @property
    def log(self) -> str:
        """The server's log."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server, and wait until it accepts connections.

        Raises:
            PostgresError: it does not start.
        """
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # of a server that was killed
        with (self.directory / "log").open("ab") as output:
            server = subprocess.Popen(
                [*as_server_user(), program("postgres"), "-D", str(self.data)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._server = server
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(self.data, server.pid):
            if server.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise PostgresError(f"The server in {self.directory} failed to start:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server, which ends its connections."""
        if self._server is not None:
            self.resume()
            self._server.send_signal(signal.SIGINT)
            try:
                self._server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
            self._server = None

    def kill(self) -> None:
        """Kill all processes of the server, as a crash of its machine does."""
        if self._server is None:
            return
        self._signal(signal.SIGKILL)
        self._server.wait(STOP_SECONDS)
        self._server = None

    def freeze(self) -> None:
        """Stop the server's processes from running, without closing their connections."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `freeze()`."""
        self._signal(signal.SIGCONT)

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the server, the postmaster first."""
        if self._server is None or self._server.poll() is not None:
            return []
        postmaster = psutil.Process(self._server.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def promote(self) -> None:
        """Make a standby a server of its own, and wait until it accepts changes."""
        subprocess.run(
            [*as_server_user(), program("pg_ctl"), "promote", "-w", "-D", str(self.data)],
            cwd=self.directory,
            check=True,
            capture_output=True,
        )

    def configure(self, **settings: str) -> None:
        """Set server settings, which a running server reads soon or with the next start."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        if processes := self.processes():
            processes[0].send_signal(signal.SIGHUP)

    async def reconfigure(self, **settings: str) -> None:
        """Set settings of a running server, and wait until it uses them.

        Raises:
            TimeoutError: it does not.
        """
        before = await self._settings_loaded()
        self.configure(**settings)
        async with asyncio.timeout(START_SECONDS):
            while await self._settings_loaded() == before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _settings_loaded(self) -> datetime:
        connection = await asyncpg.connect(self.url())
        try:
            loaded: datetime = await connection.fetchval("SELECT pg_conf_load_time()")
        finally:
            await connection.close()
        return loaded

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # a session that has ended meanwhile
                process.send_signal(number)


@contextmanager
def replication(
    directory: Path, *, max_connections: int = 100
) -> Iterator[tuple[Cluster, Cluster]]:
    """Run a primary and a standby; yield both.

    Args:
        directory: for the files of both; it must be empty.
        max_connections: the limit of each.

    Raises:
        PostgresError: a server does not start.
    """
    password = secrets.token_urlsafe(24)
    primary, standby = (Cluster(directory / name, password) for name in ("primary", "standby"))
    for cluster in (primary, standby):
        cluster.directory.mkdir(mode=0o700, parents=True)
    _hand_over(directory)
    with ExitStack() as running:
        _create_primary(primary, password, max_connections)
        running.callback(primary.stop)
        primary.start()
        create_standby(primary, standby)
        running.callback(standby.stop)
        standby.start()
        yield primary, standby


def create_standby(primary: Cluster, standby: Cluster) -> None:
    """Copy the primary into the standby's directory, which must have no data."""
    shutil.rmtree(standby.data, ignore_errors=True)
    arguments = ["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--no-sync"]
    _run(
        standby.directory,
        program("pg_basebackup"),
        *(f"--dbname={primary.url()}", f"--pgdata={standby.data}", *arguments),
    )
    standby.configure(port=str(standby.port))


async def wait_for_replay(primary: Cluster, standby: Cluster, within: float = 30.0) -> None:
    """Wait until the standby has replayed what the primary has now.

    Raises:
        TimeoutError: it has not in that time.
    """
    source, target = await asyncpg.connect(primary.url()), await asyncpg.connect(standby.url())
    try:
        position = await source.fetchval("SELECT CAST(pg_current_wal_flush_lsn() AS text)")
        reached = "SELECT pg_last_wal_replay_lsn() >= CAST($1::text AS pg_lsn)"
        async with asyncio.timeout(within):
            while not await target.fetchval(reached, position):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await source.close()
        await target.close()


def _create_primary(primary: Cluster, password: str, max_connections: int) -> None:
    file = primary.directory / "password"
    file.write_text(password)
    _run(
        primary.directory,
        program("initdb"),
        *(f"--pgdata={primary.data}", "--no-sync", "--username=postgres", f"--pwfile={file}"),
        *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", *NEW_OPTIONS),
    )
    primary.configure(
        listen_addresses="127.0.0.1",
        unix_socket_directories="",
        port=str(primary.port),
        max_connections=str(max_connections),
        timezone="UTC",
        log_timezone="UTC",
        max_wal_size="4GB",
        # Commits wait for the log, as in production: only what is flushed is replicated.
        **{**NOT_DURABLE, "synchronous_commit": "on"},
    )


def _run(directory: Path, *command: str) -> None:
    result = subprocess.run(
        [*as_server_user(), *command], cwd=directory, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise PostgresError(f"{Path(command[0]).name} failed: {result.stderr.strip()}")


def _hand_over(directory: Path) -> None:
    """Give the directories to the user who runs the servers, if that is another one."""
    if os.geteuid() == 0:
        for path in (directory, *directory.iterdir()):
            os.chown(path, NOBODY, NOBODY)
