"""The repository's configuration, and containers in which to run its commands one by one."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from app.settings import ROOT
from quart_upsun.testing.programs import require
from rehearsal import sandbox, variables
from rehearsal.configuration import read
from rehearsal.network import Ports
from rehearsal.runtimes import find_python, link_interpreter

CONFIGURATION = read(ROOT)
CONFIG: Mapping[str, Any] = CONFIGURATION.raw
((NAME, APPLICATION),) = CONFIG["applications"].items()
HOOKS: dict[str, str] = APPLICATION["hooks"]
COMMANDS: dict[str, str] = APPLICATION["web"]["commands"]
WORKERS: dict[str, str] = {
    name: worker["commands"]["start"] for name, worker in APPLICATION["workers"].items()
}

ENTROPY = "3JZQ7K2MXN5TB6WPLR4YVHDCSGA7EOUI2F5NQ3XKZJ6TM4WBRPLA"
PRODUCTION = variables.Environment("main", "production", ENTROPY)
ORIGIN = f"https://{PRODUCTION.domain}"
PASSWORD = "p@ss:w/o%r#d?&é $(id) `id` '\"\\"


def build_variables(release: str) -> dict[str, str]:
    """Return the variables of a build container, with this machine's package manager settings."""
    return variables.build_variables(
        CONFIGURATION, NAME, release=release, entropy=ENTROPY, directory="/app", cache="/cache"
    )


def runtime_variables(release: str, database: URL, port: int) -> dict[str, str]:
    """Return the variables of a running container, in production."""
    endpoint = variables.Endpoint(
        service="postgresql",
        type=CONFIG["services"]["postgresql"]["type"],
        rel="postgresql",
        scheme="pgsql",
        ip=str(database.host),
        port=database.port or 5432,
        username=database.username,
        password=str(database.password),
        path=database.database,
        query={"is_master": True},
    )
    return variables.runtime_variables(
        CONFIGURATION,
        NAME,
        release=release,
        environment=PRODUCTION,
        endpoints={"postgresql": endpoint},
        named=False,
        directory="/app",
        port=port,
        socket="/run/app.sock",
    )


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port on 127.0.0.1, which refuses connections until a server listens there."""
    ports = Ports()
    try:
        yield ports.reserve()
    finally:
        ports.close()


class Container:
    """A container with synchronous methods, for tests."""

    def __init__(
        self,
        tree: Path,
        variables: Mapping[str, str],
        *,
        read_only: bool,
        binds: Mapping[str, Path] | None = None,
        read_only_binds: Mapping[str, Path] | None = None,
    ) -> None:
        self._container = sandbox.Container(
            tree=tree,
            variables=variables,
            bwrap=require("bwrap"),
            read_only=read_only,
            binds=binds or {},
            read_only_binds=read_only_binds or {},
            path=("/image/bin", *programs()),
        )

    def run(self, text: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of the configuration and wait for its end."""
        return subprocess.run(
            self._container.shell(text),
            env=self._container.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextmanager
    def running(self, text: str, log: Path) -> Iterator["Service"]:
        """Run a long-running command of the configuration; kill it at the end of the block."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._container.shell(text),
                env=self._container.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            yield Service(process, log)
        finally:
            process.kill()  # ends all processes in the sandbox
            process.wait()


class Service:
    """A long-running command."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def send(self, number: int) -> None:
        """Send a signal to the process that the platform started, not to the sandbox around it."""
        sandbox.processes_inside(self.process.pid)[0].send_signal(number)


def programs() -> list[str]:
    """Return the directories of programs that are part of an image."""
    return [os.path.dirname(require(name)) for name in ("curl", "node", "npm")]


def image(directory: Path) -> Path:
    """Create the part of an image that contains Python."""
    link_interpreter(directory / "bin", find_python(CONFIGURATION.applications[NAME]))
    return directory
