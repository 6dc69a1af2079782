"""The services of the configuration: real ones, where this machine has them."""

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
# What a password may hold, and a URL that is put together without care cannot.
TRAPS = "%/@:#?&+ "


class ServiceError(Exception):
    """A service cannot be had; the message is one sentence."""


class Databases:
    """PostgreSQL for all environments: one server, a database for each environment's service."""

    def __init__(self, url: str) -> None:
        self.url = url
        """Of the superuser, on the database `postgres`."""
        self.password = ""

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path) -> AsyncIterator["Databases"]:
        """Run the server whose files are in `directory`; several rehearsals share it."""
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
        """Return how an application reaches a database."""
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
        """Make a database, of which the application's role is the owner.

        Raises:
            ServiceError: somebody is connected to the template.
        """
        try:
            await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER "{ROLE}"')
        except asyncpg.DuplicateDatabaseError:
            return
        except asyncpg.ObjectInUseError:
            raise ServiceError(
                f"The database {template} is in use and cannot be cloned: stop what runs on it."
            ) from None

    async def drop(self, name: str) -> None:
        await self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def connect(self, name: str) -> "asyncpg.Connection[asyncpg.Record]":
        """Connect to a database as the superuser."""
        return await asyncpg.connect(f"{self.url.rpartition('/')[0]}/{quote(name)}")

    async def block_schema_changes(self, name: str) -> None:
        """Let every statement that changes the schema fail, as a broken migration does."""
        connection = await self.connect(name)
        try:
            await connection.execute(
                "CREATE OR REPLACE FUNCTION rehearsal_break() RETURNS event_trigger AS"
                " $$ BEGIN RAISE EXCEPTION 'the rehearsal lets this migration fail'; END $$"
                " LANGUAGE plpgsql;"
                " CREATE EVENT TRIGGER rehearsal_break ON ddl_command_start"
                " EXECUTE FUNCTION rehearsal_break()"
            )
        finally:
            await connection.close()

    async def allow_schema_changes(self, name: str) -> None:
        """End what `block_schema_changes` began."""
        connection = await self.connect(name)
        try:
            await connection.execute(
                "DROP EVENT TRIGGER IF EXISTS rehearsal_break;"
                " DROP FUNCTION IF EXISTS rehearsal_break()"
            )
        finally:
            await connection.close()

    async def block_connections(self, name: str) -> None:
        """Let nobody connect to a database any more, and end who is connected."""
        await self._execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await self._fetch(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1", name
        )

    async def allow_connections(self, name: str) -> None:
        """End what `block_connections` began."""
        await self._execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')

    async def _make_role(self, file: Path) -> None:
        letters = string.ascii_letters + string.digits
        word = "".join(secrets.choice(letters) for _ in range(24))
        self.password = persistent_secret(file, word[:12] + TRAPS + word[12:])
        with suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            await self._execute(f'CREATE ROLE "{ROLE}" LOGIN')
        password = self.password.replace("'", "''")
        with suppress(asyncpg.InternalServerError):  # somebody else is just saying the same
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
        ServiceError: none is installed, or it does not start.
    """
    program = shutil.which(f"{kind}-server") or shutil.which("redis-server")
    if program is None:
        raise ServiceError(
            f"The service {service} needs {kind}-server, which is not installed"
            f" (Debian package: {kind}-server)."
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
            raise ServiceError(f"{program} does not start.")
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
    """Run what the application has relationships with; yield the endpoints by relationship."""
    endpoints: dict[str, Endpoint] = {}
    async with AsyncExitStack() as stack:
        for relationship, (name, _) in application.endpoints().items():
            service = configuration.services.get(name)
            if service is None:
                continue  # said by the validation
            if service.kind == "postgresql" and databases:
                database = databases.name(environment, name)
                await databases.create(database)
                # A rehearsal that was killed may have left it as it had broken it.
                await databases.allow_connections(database)
                await databases.allow_schema_changes(database)
                endpoints[relationship] = databases.endpoint(database, name, service.type)
                if service.version and service.version != str(MAJOR):
                    found.append(
                        Finding(
                            "services",
                            f"PostgreSQL {service.version} is asked for, and rehearsed on {MAJOR}",
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
                        f"{name}: a service of type {service.type} cannot be rehearsed",
                        consequence="the application does not find its variables here",
                        severity=Severity.WARNING,
                    )
                )
        yield endpoints


def empty(directory: Path) -> None:
    """Remove what lies in a directory."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
