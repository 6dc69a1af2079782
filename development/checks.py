"""What can be known to be wrong before anything is started, each as one sentence."""

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
    """A step of the set-up failed; the message is one sentence."""


def check_node() -> str:
    """Return the path of Node, which builds the assets."""
    node = shutil.which("node")
    if node is None:
        raise SetupError(f"Node was not found: install Node {OLDEST_NODE} or later.")
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    version = answer.stdout.strip().removeprefix("v")
    major = re.match(r"\d+", version)
    if major is None or int(major[0]) < OLDEST_NODE:
        raise SetupError(
            f"Node {OLDEST_NODE} or later is needed, and {node} is {version or 'broken'}."
        )
    return node


def check_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return the host and the port to serve on, after a look whether they are to be had."""
    host = environment.get("HOST") or "127.0.0.1"
    text = environment.get("PORT") or "8000"
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise SetupError(f"PORT must be a number from 1 to 65535, not {text!r}.")
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
        raise SetupError(f"HOST is no address of this machine: {host}.") from None
    except PermissionError:
        raise SetupError(f"Port {port} may not be used by you: try `PORT=8001 make run`.") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise SetupError(f"{host} port {port} cannot be used: {error.strerror}.") from None
        other = 8001 if port == 8000 else 8000
        raise SetupError(
            f"Port {port} is taken, by another program or by the server of an earlier `make run`"
            f" that was killed: end that, or choose another with `PORT={other} make run`."
        ) from None
    return host, port


async def check_database(url: URL) -> None:
    """Connect to the database once, as the application will."""
    try:
        connection = await connect(url, name="make run", timeout=CONNECT_SECONDS)
    except NoConnectionError as error:
        raise SetupError(
            f"DATABASE_URL names the database {url.database!r} at {host_and_port(url)}, which"
            f" cannot be reached: {str(error).splitlines()[0].rstrip('.')}."
        ) from None
    await connection.close()


async def check_owner(settings: DatabaseSettings) -> ForeignDatabaseError | None:
    """Return why this checkout may not work on the database; None if it may, or nobody owns it."""
    connection = await connect(settings.database_url, name="make run", timeout=CONNECT_SECONDS)
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
