"""Checks before startup. Each failure is one sentence that says what to do."""

import errno
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping

from sqlalchemy import URL

from quart_upsun.database import NoConnectionError, connect
from quart_upsun.database.ownership import (
    HAS_OWNER_TABLE,
    SELECT_OWNER,
    ForeignDatabaseError,
    parse_owner,
    require_owner,
)
from quart_upsun.database.url import host_and_port
from quart_upsun.settings import DatabaseSettings

OLDEST_NODE = 20
CONNECT_SECONDS = 5


class SetupError(Exception):
    """A setup step failed; the message is shown to the user."""


def check_node() -> str:
    """Return the path of Node, which builds the assets.

    Raises:
        SetupError: Node is not installed, or is too old.
    """
    node = shutil.which("node")
    if node is None:
        raise SetupError(f"Node is not installed. Install Node {OLDEST_NODE} or later.")
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    version = answer.stdout.strip().removeprefix("v")
    major = re.match(r"\d+", version)
    if major is None or int(major[0]) < OLDEST_NODE:
        raise SetupError(
            f"Node {OLDEST_NODE} or later is required, but {node} is {version or 'broken'}."
        )
    return node


def check_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return the host and port to serve on, after checking that they can be bound.

    Raises:
        SetupError: HOST or PORT is invalid, or the port is in use.
    """
    host = environment.get("HOST") or "127.0.0.1"
    text = environment.get("PORT") or "8000"
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise SetupError(f"PORT must be a number from 1 to 65535, got {text!r}.")
    port = int(text)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except socket.gaierror:
        raise SetupError(f"HOST must be an address of this machine, got {host!r}.") from None
    except PermissionError:
        raise SetupError(f"Permission denied for port {port}. Try `PORT=8001 make run`.") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise SetupError(f"Cannot listen on {host} port {port}: {error.strerror}.") from None
        other = 8001 if port == 8000 else 8000
        raise SetupError(
            f"Port {port} is already in use, by another program or by the server of an earlier"
            f" `make run` that was killed. Stop it, or use another port: `PORT={other} make run`."
        ) from None
    return host, port


async def check_database(url: URL) -> None:
    """Check that the database accepts connections.

    Raises:
        SetupError: it does not.
    """
    try:
        connection = await connect(url, name="make run", timeout=CONNECT_SECONDS)
    except NoConnectionError as error:
        raise SetupError(
            f"Cannot connect to the database {url.database!r} at {host_and_port(url)} (from"
            f" DATABASE_URL): {str(error).splitlines()[0].rstrip('.')}."
        ) from None
    await connection.close()


async def check_owner(settings: DatabaseSettings) -> ForeignDatabaseError | None:
    """Return the error if the database belongs to another environment; None otherwise."""
    connection = await connect(settings.direct_url, name="make run", timeout=CONNECT_SECONDS)
    try:
        if not await connection.fetchval(HAS_OWNER_TABLE):
            return None
        owner = parse_owner(await connection.fetchrow(SELECT_OWNER))
    finally:
        await connection.close()
    if owner is not None:
        try:
            require_owner(owner, settings.identity)
        except ForeignDatabaseError as error:
            return error
    return None
