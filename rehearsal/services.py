"""Run the services of the configuration: PostgreSQL, Redis and Valkey."""

import asyncio
import re
import secrets
import shutil
import signal
import socket
import string
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

import asyncpg

from embedded_postgres import MAJOR, PostgresError, postgres
from rehearsal.configuration import Application, Configuration
from rehearsal.findings import Finding, Severity
from rehearsal.locks import persistent_secret
from rehearsal.network import accepts
from rehearsal.sandbox import start_helper
from rehearsal.variables import Endpoint

START_SECONDS = 10
STOP_SECONDS = 10
ROLE = "main"  # as on the platform
# Characters of the password that break a URL in which they are not percent-encoded.
SPECIAL_CHARACTERS = "%/@:#?&+ "


class ServiceError(Exception):
    """The rehearsal cannot run, for example because a service is unavailable.

    The message is one sentence.
    """


class Databases:
    """One PostgreSQL server with a database for each environment and service."""

    def __init__(self, url: str) -> None:
        self.url = url
        """The superuser's URL of the database `postgres`."""
        self.password = ""

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path) -> AsyncIterator["Databases"]:
        """Run the server with its files in `directory`; concurrent rehearsals share it."""
        manager = postgres(directory / "postgres", max_connections=200)
        try:
            url = await asyncio.to_thread(manager.__enter__)
        except PostgresError as error:
            raise ServiceError(str(error)) from None
        try:
            databases = cls(url)
            await databases._make_role(directory / "password")
            yield databases
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)

    def name(self, environment: str, service: str) -> str:
        """Return the name of a service's database."""
        return re.sub(r"[^a-z0-9]+", "_", f"{environment}_{service}".lower())

    def endpoint(self, name: str, service: str, type_: str) -> Endpoint:
        """Return a database's endpoint for the application."""
        return Endpoint(
            service=service,
            type=type_,
            scheme="pgsql",
            host="127.0.0.1",
            port=urlsplit(self.url).port or 5432,
            username=ROLE,
            password=self.password,
            path=name,
            query={"is_master": True},
        )

    async def exists(self, name: str) -> bool:
        return bool(await self._fetch("SELECT count(*) FROM pg_database WHERE datname = $1", name))

    async def create(self, name: str, *, template: str = "template0") -> None:
        """Create a database owned by the application's role, if it does not exist.

        Raises:
            ServiceError: the template has open connections.
        """
        try:
            await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER "{ROLE}"')
        except asyncpg.DuplicateDatabaseError:
            return
        except asyncpg.ObjectInUseError:
            raise ServiceError(
                f"The database {template} has open connections and cannot be cloned. Stop the"
                " rehearsal that uses it."
            ) from None

    async def drop(self, name: str) -> None:
        await self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def connect(self, name: str) -> "asyncpg.Connection[asyncpg.Record]":
        """Connect to a database as the superuser."""
        return await asyncpg.connect(f"{self.url.rpartition('/')[0]}/{quote(name)}")

    async def block_schema_changes(self, name: str) -> None:
        """Make every statement that changes the schema fail, like a broken migration."""
        connection = await self.connect(name)
        try:
            await connection.execute(
                "CREATE OR REPLACE FUNCTION rehearsal_break() RETURNS event_trigger AS"
                " $$ BEGIN RAISE EXCEPTION 'the rehearsal makes this migration fail'; END $$"
                " LANGUAGE plpgsql;"
                " CREATE EVENT TRIGGER rehearsal_break ON ddl_command_start"
                " EXECUTE FUNCTION rehearsal_break()"
            )
        finally:
            await connection.close()

    async def allow_schema_changes(self, name: str) -> None:
        """Undo `block_schema_changes`."""
        connection = await self.connect(name)
        try:
            await connection.execute(
                "DROP EVENT TRIGGER IF EXISTS rehearsal_break;"
                " DROP FUNCTION IF EXISTS rehearsal_break()"
            )
        finally:
            await connection.close()

    async def block_connections(self, name: str) -> None:
        """Refuse new connections to a database, and close the existing ones."""
        await self._execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await self._fetch(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1", name
        )

    async def allow_connections(self, name: str) -> None:
        """Undo `block_connections`."""
        await self._execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')

    async def _make_role(self, file: Path) -> None:
        letters = string.ascii_letters + string.digits
        word = "".join(secrets.choice(letters) for _ in range(24))
        self.password = persistent_secret(file, word[:12] + SPECIAL_CHARACTERS + word[12:])
        with suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            await self._execute(f'CREATE ROLE "{ROLE}" LOGIN')
        password = self.password.replace("'", "''")
        with suppress(asyncpg.InternalServerError):  # another rehearsal sets the same password
            await self._execute(f"ALTER ROLE \"{ROLE}\" PASSWORD '{password}'")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _fetch(self, query: str, *values: object) -> object:
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(query, *values)
        finally:
            await connection.close()


@asynccontextmanager
async def memory_store(
    kind: str, service: str, type_: str, directory: Path
) -> AsyncIterator[Endpoint]:
    """Run a Redis or Valkey server.

    Raises:
        ServiceError: the server is not installed, or does not start.
    """
    program = shutil.which(f"{kind}-server") or shutil.which("redis-server")
    if program is None:
        raise ServiceError(
            f"The service {service} requires {kind}-server. Install it (Debian package:"
            f" {kind}-server)."
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    directory.mkdir(parents=True, exist_ok=True)
    server = await start_helper(
        *(program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)),
        log=directory / "log",
    )
    try:
        if not await accepts(port, START_SECONDS, lambda: not server.has_ended):
            raise ServiceError(f"{program} does not start. Its log is {directory / 'log'}.")
        yield Endpoint(service, type_, "redis", "127.0.0.1", port)
    finally:
        await server.stop(signal.SIGTERM, STOP_SECONDS)


@asynccontextmanager
async def running(
    configuration: Configuration,
    application: Application,
    *,
    environment: str,
    state: Path,
    databases: Databases | None,
    found: list[Finding],
) -> AsyncIterator[Mapping[str, Endpoint]]:
    """Run the application's services; yield their endpoints by the name of the relationship."""
    endpoints: dict[str, Endpoint] = {}
    async with AsyncExitStack() as stack:
        for relationship, (name, _) in application.endpoints().items():
            service = configuration.services.get(name)
            if service is None:
                continue  # reported by the validation
            if service.kind == "postgresql" and databases:
                database = databases.name(environment, name)
                await databases.create(database)
                # A rehearsal with --break that was killed may have left these disabled.
                await databases.allow_connections(database)
                await databases.allow_schema_changes(database)
                endpoints[relationship] = databases.endpoint(database, name, service.type)
                if service.version and service.version != str(MAJOR):
                    found.append(
                        Finding(
                            "services",
                            f"PostgreSQL {MAJOR} is used instead of {service.version}",
                            consequence="differences between the versions are not tested",
                            severity=Severity.NOTE,
                        )
                    )
            elif service.kind in {"redis", "redis-persistent", "valkey", "valkey-persistent"}:
                kind = service.kind.partition("-")[0]
                endpoints[relationship] = await stack.enter_async_context(
                    memory_store(kind, name, service.type, state / name)
                )
            else:
                found.append(
                    Finding(
                        "services",
                        f"the service {name} ({service.type}) is not supported by the rehearsal",
                        consequence="the application runs without this service and its variables",
                        severity=Severity.NOT_REHEARSED,
                    )
                )
        yield endpoints


def empty(directory: Path) -> None:
    """Remove the contents of a directory."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
