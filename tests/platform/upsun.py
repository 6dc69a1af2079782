"""Upsun's containers in small: the shipped commands, the documented variables, a read-only image.

What a container may write to, and what it has in its environment, is what Upsun documents for each
phase. Beyond that, these sandboxes see this machine's files, read-only, and its network.
"""

import base64
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from sqlalchemy import URL

from tests.tools import require

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / ".upsun" / "config.yaml").read_text())
(APPLICATION,) = CONFIG["applications"].values()
HOOKS: dict[str, str] = APPLICATION["hooks"]
COMMANDS: dict[str, str] = APPLICATION["web"]["commands"]

ORIGIN = "https://www.example.com"
ENTROPY = "3JZQ7K2MXN5TB6WPLR4YVHDCSGA7EOUI2F5NQ3XKZJ6TM4WBRPLA"
PASSWORD = "p@ss:w/o%r#d?&é $(id) `id` '\"\\"

# How package managers reach their registries on this machine.
REGISTRIES = ("PIP_", "NPM_CONFIG_", "SSL_CERT_", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

# The command that follows finds what `.environment` exports. Whatever the file says breaks rsync
# and mount downloads, so nothing may come after it.
SOURCE_ENVIRONMENT = """
. ./.environment >/tmp/environment.output 2>&1
if [ -s /tmp/environment.output ]; then
    echo '.environment says:' >&2
    cat /tmp/environment.output >&2
    exit 99
fi
exec dash -c "$0"
"""


def encode(value: object) -> str:
    """Return a PLATFORM_* variable that holds a structure."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def build_variables(release: str) -> dict[str, str]:
    """Return the variables of a build container, and how its packages are to be had."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name.upper().startswith(REGISTRIES) or name.upper() in PROXIES
    }
    # Home is the application's directory there, so that these files have to be named.
    for name, paths in {
        "PIP_CONFIG_FILE": ("~/.config/pip/pip.conf", "~/.pip/pip.conf"),
        "NPM_CONFIG_USERCONFIG": ("~/.npmrc",),
    }.items():
        for path in map(os.path.expanduser, paths):
            if name not in passed and os.path.exists(path):
                passed[name] = path
    return passed | {
        "CI": "1",
        "PIP_USER": "1",  # the Python image says so
        "PLATFORM_APP_DIR": "/app",
        "PLATFORM_APPLICATION": encode(APPLICATION),
        "PLATFORM_APPLICATION_NAME": "app",
        "PLATFORM_CACHE_DIR": "/cache",
        "PLATFORM_OUTPUT_DIR": "/app",
        "PLATFORM_PROJECT": "abcdefgh1234567",
        "PLATFORM_PROJECT_ENTROPY": ENTROPY,
        "PLATFORM_SOURCE_DIR": "/app",
        "PLATFORM_TREE_ID": release,
        "PLATFORM_VARIABLES": encode({}),
        "PLATFORM_VENDOR": "upsun",
    }


def runtime_variables(release: str, database: URL, port: int) -> dict[str, str]:
    """Return the variables of a running container, in production."""
    endpoint = {
        "username": database.username,
        "scheme": "pgsql",
        "service": "postgresql",
        "fragment": None,
        "ip": "127.0.0.1",
        "hostname": "abc.postgresql.service._.eu-1.platformsh.site",
        "port": database.port,
        "cluster": "abc-main-bvxea6i",
        "host": database.host,
        "rel": "postgresql",
        "path": database.database,
        "query": {"is_master": True},
        "password": database.password,
        "type": CONFIG["services"]["postgresql"]["type"],
        "public": False,
        "host_mapped": False,
    }
    route = {
        "primary": True,
        "id": None,
        "type": "upstream",
        "upstream": "app",
        "original_url": "https://{default}/",
    }
    service = {name: endpoint[name] for name in ("host", "port", "path", "username", "password")}
    return {
        "PLATFORM_APP_DIR": "/app",
        "PLATFORM_APPLICATION": encode(APPLICATION),
        "PLATFORM_APPLICATION_NAME": "app",
        "PLATFORM_BRANCH": "main",
        "PLATFORM_ENVIRONMENT": "main-bvxea6i",
        "PLATFORM_ENVIRONMENT_TYPE": "production",
        "PLATFORM_PROJECT": "abcdefgh1234567",
        "PLATFORM_PROJECT_ENTROPY": ENTROPY,
        "PLATFORM_RELATIONSHIPS": encode({"postgresql": [endpoint]}),
        "PLATFORM_ROUTES": encode({f"{ORIGIN}/": route}),
        "PLATFORM_SMTP_HOST": "",
        "PLATFORM_TREE_ID": release,
        "PLATFORM_VARIABLES": encode({}),
        "PORT": str(port),
        "SOCKET": "/run/app.sock",
        "POSTGRESQL_SCHEME": "pgsql",
        "POSTGRESQL_QUERY": "{'is_master': True}",
    } | {f"POSTGRESQL_{name.upper()}": str(value) for name, value in service.items()}


@contextmanager
def reserved_port() -> Iterator[int]:
    """Keep a port of 127.0.0.1 for a server that sets SO_REUSEADDR, as servers do.

    Until it listens, connections are refused.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


class Container:
    """A place to run commands in: `/app`, further directories, and variables."""

    def __init__(
        self,
        tree: Path,
        variables: Mapping[str, str],
        *,
        read_only: bool,
        binds: Mapping[str, Path] | None = None,
        read_only_binds: Mapping[str, Path] | None = None,
    ) -> None:
        self.variables = dict(variables)
        self.arguments = [
            require("bwrap"),
            *("--die-with-parent", "--unshare-pid", "--proc", "/proc", "--dev", "/dev"),
            *("--chdir", "/app", "--clearenv"),
        ]
        for entry in sorted(Path("/").iterdir()):
            if str(entry) in {"/app", "/cache", "/dev", "/image", "/proc", "/run", "/tmp"}:
                continue
            if entry.is_symlink():
                self.arguments += ["--symlink", os.readlink(entry), str(entry)]
            elif entry.is_dir():
                self.arguments += ["--ro-bind", str(entry), str(entry)]
        self.arguments += ["--tmpfs", "/tmp", "--tmpfs", "/run"]
        # The name service of some machines lies there.
        self.arguments += ["--ro-bind-try", "/run/systemd/resolve", "/run/systemd/resolve"]
        # Read-only, and already there for interpreters that live elsewhere.
        self.arguments += ["--ro-bind", sys.base_prefix, sys.base_prefix]
        self.arguments += ["--ro-bind" if read_only else "--bind", str(tree), "/app"]
        for option, paths in {"--bind": binds, "--ro-bind": read_only_binds}.items():
            for target, source in (paths or {}).items():
                self.arguments += [option, str(source), target]

    def command(self, shipped: str) -> list[str]:
        """Return what runs a command of the configuration as the platform does."""
        variables = {
            "HOME": "/app",
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join(["/image/bin", *programs(), "/usr/bin", "/bin"]),
        } | self.variables
        environment: list[str] = []
        for name, value in variables.items():
            environment += ["--setenv", name, value]
        return [
            *self.arguments,
            *environment,
            *("--", require("dash"), "-c", SOURCE_ENVIRONMENT, shipped),
        ]

    def run(self, shipped: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of the configuration to its end."""
        return subprocess.run(
            self.command(shipped),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextmanager
    def running(self, shipped: str, log: Path) -> Iterator["Service"]:
        """Run a command of the configuration that stays in the foreground; end it at the end."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(shipped), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            yield Service(process, log)
        finally:
            process.kill()  # and with it everything in the sandbox
            process.wait()


class Service:
    """A command that stays in the foreground."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def send(self, number: int) -> None:
        """Send a signal to the process that the platform started, not to the sandbox around it."""
        (sandbox,) = psutil.Process(self.process.pid).children()
        (service,) = sandbox.children()
        service.send_signal(number)


def programs() -> list[str]:
    """Return the directories of the programs that an image brings along."""
    return [os.path.dirname(require(name)) for name in ("curl", "node", "npm")]


def image(directory: Path) -> Path:
    """Make the part of an image that Python is in: the interpreter of the tests as `python3`."""
    python = directory / "bin" / "python3"
    python.parent.mkdir(parents=True)
    base = getattr(sys, "_base_executable", sys.executable)
    # No symbolic link: a virtual environment would be made with that, and it goes away.
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(base)} "$@"\n')
    python.chmod(0o755)
    return directory
