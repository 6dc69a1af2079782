"""Run a real PgBouncer in front of the test server."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy import make_url

from quart_upsun.testing.programs import require

START_SECONDS = 15.0
# The first version that prepares the statements of clients on each server connection.
PREPARES = (1, 21)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def version(program: str) -> tuple[int, ...]:
    """Return the version of a PgBouncer, such as (1, 18)."""
    command = [program, "--version"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"PgBouncer (\d+)\.(\d+)", output)
    assert match, output
    return tuple(map(int, match.groups()))


class PgBouncer:
    """A PgBouncer for all databases of a server.

    Args:
        server_url: the URL of a database of the server.
        directory: for the configuration and the log.
        settings: settings of PgBouncer that replace those below.
    """

    def __init__(self, server_url: str, directory: Path, **settings: object) -> None:
        self._server = make_url(server_url)
        self.port = free_port()
        self.program = require("pgbouncer")
        self.version = version(self.program)
        self._ini, self._log = directory / "pgbouncer.ini", directory / "pgbouncer.log"
        self._settings: dict[str, object] = {
            "pool_mode": "transaction",
            "default_pool_size": 20,
            "max_client_conn": 500,
            "query_wait_timeout": 5,
            **settings,
        }
        if self.version >= PREPARES:
            self._settings.setdefault("max_prepared_statements", 0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def url(self, database_url: str) -> str:
        """Return the URL of a database of the server, through this PgBouncer."""
        url = make_url(database_url).set(host="127.0.0.1", port=self.port, query={})
        return url.render_as_string(hide_password=False)

    def start(self) -> Self:
        """Start it and wait until it accepts connections."""
        host = self._server.host or self._server.query["host"]
        port = self._server.port or self._server.query.get("port", 5432)
        account = f"user={self._server.username}"
        if self._server.password:
            account += f" password={self._server.password}"
        settings = "\n".join(f"{name} = {value}" for name, value in self._settings.items())
        self._ini.touch(mode=0o600)
        self._ini.write_text(
            f"[databases]\n* = host={host} port={port} {account}\n"
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nunix_socket_dir =\nauth_type = any\n"
            f"listen_port = {self.port}\n{settings}\n"
        )
        # It refuses to run as root, and reads its configuration before it changes the user.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, *user, str(self._ini)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return self
        raise AssertionError(f"PgBouncer does not start:\n{self.log}")

    def pause(self) -> None:
        """Let it close its server connections and keep new statements waiting."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR2)

    def stop(self) -> None:
        """Stop it at once, and close all its connections."""
        if self._process is not None:
            # Since 1.23, SIGTERM waits for the clients.
            at_once = signal.SIGTERM if self.version < (1, 23) else signal.SIGQUIT
            self._process.send_signal(at_once)
            self._process.wait(START_SECONDS)
            self._process = None


@contextmanager
def pgbouncer(server_url: str, directory: Path, **settings: object) -> Iterator[PgBouncer]:
    """Run a PgBouncer during a block; the arguments are those of `PgBouncer`."""
    bouncer = PgBouncer(server_url, directory, **settings).start()
    try:
        yield bouncer
    finally:
        bouncer.stop()
