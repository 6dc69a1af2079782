"""Run a MariaDB service with Debian's packages: its databases, endpoints and privileges."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rehearsal.network import accepts
from rehearsal.sandbox import start_helper
from rehearsal.services.base import Accounts, ServiceError

PROGRAMS = ("mariadbd", "mysqld")
PLACES = ("/usr/sbin", "/usr/libexec", "/usr/local/sbin", "/opt/homebrew/bin")
START_SECONDS = 30  # includes crash recovery
STOP_SECONDS = 10
INSTALL_SECONDS = 60

READ = "SELECT, CREATE TEMPORARY TABLES, SHOW VIEW"
WRITE = f"{READ}, INSERT, UPDATE, DELETE, EVENT, EXECUTE, INDEX, TRIGGER, LOCK TABLES"
RIGHTS = {
    "ro": READ,
    "rw": WRITE,
    "admin": "ALL PRIVILEGES",
    "replication": f"{READ}, LOCK TABLES",
    "replication-admin": f"{READ}, LOCK TABLES",
}
"""By privilege, from the documentation of the service."""

PROPERTIES = {
    "default_charset": "character-set-server",
    "default_collation": "collation-server",
    "max_allowed_packet": "max-allowed-packet",
    "optimizer_switch": "optimizer-switch",
    "max_heap_table_size": "max-heap-table-size",
    "table_definition_cache": "table-definition-cache",
    "table_open_cache": "table-open-cache",
}
"""The server's options, by the documented name of the property."""
MEGABYTES = {"max_allowed_packet", "max_heap_table_size"}  # the properties with this unit


def program() -> str | None:
    """Return the path of the server; None if it is not installed."""
    for name in PROGRAMS:
        found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(PLACES))
        if found:
            return found
    return None


def installed_version(server: str) -> str:
    """Return the version of the server, such as `10.11`."""
    result = subprocess.run([server, "--no-defaults", "--version"], capture_output=True, text=True)
    words = result.stdout.partition("Ver ")[2].split("-")[0].split(".")
    return ".".join(words[:2])


@asynccontextmanager
async def running(
    server: str,
    directory: Path,
    accounts: Accounts,
    properties: Mapping[str, Any],
    *,
    port: int,
    scratch: Path,
) -> AsyncIterator[None]:
    """Run a server with its files in `directory`.

    Args:
        server: the path of the program.
        directory: the data, the log and the passwords; it exists.
        accounts: the databases and endpoints.
        properties: the server's properties in the configuration.
        port: the port to listen on, on 127.0.0.1.
        scratch: a directory with a short path, for the Unix socket.

    Raises:
        ServiceError: the server does not start.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    log = directory / "log"
    if not (directory / "data").exists():
        await asyncio.to_thread(install, directory, log)
    statements = directory / "accounts.sql"
    statements.touch(mode=0o600)
    statements.write_text(initial_statements(directory, accounts))
    options = {
        "character-set-server": "utf8mb4",
        "collation-server": "utf8mb4_unicode_ci",
        "max-allowed-packet": "16M",
        "datadir": str(directory / "data"),
        "socket": str(scratch / "socket"),
        "pid-file": str(scratch / "pid"),
        "init-file": str(statements),
        "bind-address": "127.0.0.1",
        "port": str(port),
        "max-connections": "200",
        "innodb-buffer-pool-size": "64M",
        "innodb-log-file-size": "16M",
        **option_values(properties),
    }
    flags = ["--skip-name-resolve", "--skip-log-bin", *as_user()]
    process = await start_helper(
        *(server, "--no-defaults", *flags, *(f"--{key}={value}" for key, value in options.items())),
        log=log,
    )
    try:
        # The socket appears when the statements above have been executed.
        if not await accepts(port, START_SECONDS, lambda: not process.has_ended):
            raise ServiceError(f"{server} does not start. Its log is {log}.")
        yield
    finally:
        await process.stop(signal.SIGTERM, STOP_SECONDS)


def install(directory: Path, log: Path) -> None:
    """Create the system tables, in a temporary directory first, in case it is interrupted."""
    unfinished = directory / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    command = shutil.which("mariadb-install-db") or shutil.which("mysql_install_db")
    if command is None:
        raise ServiceError(
            "mariadb-install-db is missing. Install the Debian package mariadb-server."
        )
    result = subprocess.run(
        [
            *(command, "--no-defaults", f"--datadir={unfinished}", "--skip-test-db"),
            *("--auth-root-authentication-method=normal", "--skip-name-resolve"),
            *("--innodb-log-file-size=16M", *as_user()),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    if result.returncode != 0:
        log.write_text(result.stdout + result.stderr)
        raise ServiceError(f"MariaDB failed to create its system tables. See {log}.")
    unfinished.rename(directory / "data")


def as_user() -> list[str]:
    """Return the option without which the server refuses to run as root."""
    return ["--user=root"] if os.geteuid() == 0 else []


def option_values(properties: Mapping[str, Any]) -> dict[str, str]:
    """Return the server's options for the properties in the configuration."""
    return {
        PROPERTIES[name]: f"{value}M" if name in MEGABYTES else str(value)
        for name, value in properties.items()
        if name in PROPERTIES
    }


def initial_statements(directory: Path, accounts: Accounts) -> str:
    """Return the statements that create databases and users, one a line."""
    root = secrets.token_hex(16)  # nobody logs in as root
    lines = [
        f"ALTER USER 'root'@'localhost' IDENTIFIED BY '{root}';",
        "DELETE FROM mysql.global_priv WHERE User = '' OR (User = 'root' AND Host <> 'localhost');",
        "FLUSH PRIVILEGES;",
    ]
    lines += [f"CREATE DATABASE IF NOT EXISTS {quoted(name)};" for name in accounts.databases]
    for access in accounts.endpoints.values():
        user = f"{text(access.username)}@'%'"
        lines.append(
            f"CREATE OR REPLACE USER {user} IDENTIFIED BY {text(access.secret(directory))};"
        )
        for database, privilege in access.privileges.items():
            if rights := RIGHTS.get(privilege):
                lines.append(f"GRANT {rights} ON {quoted(database)}.* TO {user};")
            if privilege.startswith("replication"):
                lines.append(f"GRANT REPLICATION SLAVE ON *.* TO {user};")
    return "\n".join([*lines, ""])


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return "`{}`".format(name.replace("`", "``"))


def text(value: str) -> str:
    """Return a text as an SQL literal."""
    return "'{}'".format(value.replace("\\", "\\\\").replace("'", "''"))
