"""Run the services of the configuration, and describe them to the applications."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedded_postgres import PostgresError, stopped
from rehearsal.configuration import Configuration, Service
from rehearsal.findings import Finding, Severity
from rehearsal.network import Ports
from rehearsal.services import mariadb, memory
from rehearsal.services.base import (
    SHAPES,
    Accounts,
    ServiceError,
    Shape,
    accounts,
    family,
)
from rehearsal.services.postgresql import MAX_CONNECTIONS, Databases
from rehearsal.variables import Endpoint

__all__ = ["Databases", "ServiceError", "Services", "copy", "remove"]

STAGE = "services"
PACKAGES = {
    "mariadb": "mariadb-server",
    "memcached": "memcached",
    "redis": "redis-server",
    "valkey": "redis-server",
}
"""The Debian packages of the services that can be rehearsed, by type."""


class Services:
    """The running services of an environment.

    A service that cannot run here has the documented variables, but nothing listens on its port.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        directory: Path,
        scratch: Path,
        ports: Ports,
        found: list[Finding],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Prepare the services without starting them.

        Args:
            configuration: the commit's configuration.
            directory: the services' data; each one has a directory of its own.
            scratch: a temporary directory with a short path.
            ports: reserves the ports.
            found: receives the findings.
            max_connections: the limit of each PostgreSQL server.
        """
        self.databases: list[Databases] = []
        """The PostgreSQL servers."""
        self.gaps: dict[str, str] = {}
        """What is missing of a service here, by its name, such as `the service queue`."""
        self._configuration = configuration
        self._directory = directory
        self._scratch = scratch
        self._ports = ports
        self._found = found
        self._max_connections = max_connections
        self._endpoints: dict[str, dict[str, Endpoint]] = {}

    async def start(self, names: Iterable[str], stack: AsyncExitStack) -> None:
        """Start the named services; `stack` stops them."""
        for name in names:
            service = self._configuration.services.get(name)
            if service is not None and name not in self._endpoints:
                self._endpoints[name] = await self._start(name, service, stack)

    def endpoint(self, service: str, name: str) -> Endpoint | None:
        """Return an endpoint of a started service.

        Args:
            service: the name of the service.
            name: the name of the endpoint; "" for the default one.
        """
        endpoints = self._endpoints.get(service)
        if not endpoints:
            return None
        return endpoints.get(name) or next(iter(endpoints.values()))

    async def _start(
        self, name: str, service: Service, stack: AsyncExitStack
    ) -> dict[str, Endpoint]:
        """Start a service; return its endpoints, with the default one first."""
        kind = family(service.kind)
        shape = SHAPES.get(kind, Shape(kind, kind, 0))
        if service.kind.endswith("-replica"):
            return await self._replica(name, service, shape, stack)
        if kind == "postgresql":
            endpoints = await self._postgresql(name, service, shape, stack)
        elif kind == "mariadb":
            endpoints = await self._mariadb(name, service, shape, stack)
        elif kind == "network-storage":
            endpoints = {}  # a directory, which mounts refer to
        else:
            server = memory.program(kind)
            port = self._ports.reserve()
            if server is None:
                self._not_rehearsed(name, service, kind)
            else:
                await stack.enter_async_context(
                    memory.running(server, self._directory / name, port)
                )
                if kind not in Path(server).name:
                    self._used_instead(name, Path(server).name, service.type)
            endpoints = {shape.endpoint: self._endpoint(name, service, shape, port)}
        return dict(sorted(endpoints.items(), key=lambda item: item[0] != shape.endpoint))

    async def _postgresql(
        self, name: str, service: Service, shape: Shape, stack: AsyncExitStack
    ) -> dict[str, Endpoint]:
        options = self._options(name)
        described = accounts(options, shape, databases="databases", default="default_database")
        described = described.with_readers(self._replicas(name))
        listed = options.get("extensions")
        extensions = [str(each) for each in listed] if isinstance(listed, list) else []
        server = await stack.enter_async_context(
            Databases.running(
                self._directory / name,
                described,
                extensions,
                service.version,
                self._max_connections,
            )
        )
        self.databases.append(server)
        if service.version not in {"", str(server.major)}:
            self._used_instead(name, f"PostgreSQL {server.major}", service.type)
        for extension in server.missing:
            self.gaps[name] = f"the PostgreSQL extension {extension}"
            self._add(
                ("services", name, "configuration", "extensions"),
                f"the PostgreSQL of this rehearsal does not have the extension {extension}",
                "statements that use it fail here",
                f"install PostgreSQL {service.version} and the extension (Debian package:"
                f" postgresql-{service.version})",
                Severity.NOT_REHEARSED,
            )
        return self._accounts(name, service, shape, described, server.port)

    async def _mariadb(
        self, name: str, service: Service, shape: Shape, stack: AsyncExitStack
    ) -> dict[str, Endpoint]:
        options = self._options(name)
        described = accounts(options, shape, databases="schemas", default="default_schema")
        described = described.with_readers(self._replicas(name))
        directory = self._directory / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        port = self._ports.reserve()
        server = mariadb.program()
        if server is None:
            self._not_rehearsed(name, service, "mariadb")
        else:
            properties = options.get("properties")
            await stack.enter_async_context(
                mariadb.running(
                    server,
                    directory,
                    described,
                    properties if isinstance(properties, Mapping) else {},
                    port=port,
                    scratch=self._scratch / name,
                )
            )
            version = mariadb.installed_version(server)
            if service.kind == "oracle-mysql" or service.version != version:
                self._used_instead(name, f"MariaDB {version}", service.type)
        return self._accounts(name, service, shape, described, port)

    async def _replica(
        self, name: str, service: Service, shape: Shape, stack: AsyncExitStack
    ) -> dict[str, Endpoint]:
        """Describe a replica: a read-only user of its primary service."""
        primary = self._primary(name)
        await self.start([primary], stack)
        endpoint = self._endpoints.get(primary, {}).get(name)
        if endpoint is None:
            self._not_rehearsed(name, service, "")
            return {shape.endpoint: self._endpoint(name, service, shape, self._ports.reserve())}
        self._used_instead(name, f"a read-only user of {primary}", service.type)
        return {
            shape.endpoint: replace(
                endpoint,
                service=name,
                type=service.type,
                rel=shape.endpoint,
                query={"is_master": False},
            )
        }

    def _replicas(self, primary: str) -> list[str]:
        """Return the names of a service's replicas."""
        return [
            name
            for name, service in self._configuration.services.items()
            if service.kind.endswith("-replica") and self._primary(name) == primary
        ]

    def _primary(self, replica: str) -> str:
        """Return the name of the service that a replica copies; "" if there is none."""
        relationships = self._configuration.raw["services"][replica].get("relationships")
        target = relationships.get("primary") if isinstance(relationships, Mapping) else None
        name = target.get("service") if isinstance(target, Mapping) else target
        return str(name or "").partition(":")[0]

    def _options(self, name: str) -> Mapping[str, Any]:
        """Return the service's `configuration`."""
        options = self._configuration.raw["services"][name].get("configuration")
        return options if isinstance(options, Mapping) else {}

    def _endpoint(self, name: str, service: Service, shape: Shape, port: int) -> Endpoint:
        return Endpoint(
            service=name,
            type=service.type,
            rel=shape.endpoint,
            scheme=shape.scheme,
            port=port,
            username=shape.username,
            password="rehearsal" if shape.has_password else None,
            path=shape.path,
            query=shape.query,
        )

    def _accounts(
        self, name: str, service: Service, shape: Shape, described: Accounts, port: int
    ) -> dict[str, Endpoint]:
        """Return the endpoints of a database service."""
        return {
            key: Endpoint(
                service=name,
                type=service.type,
                rel=key,
                scheme=shape.scheme,
                port=port,
                username=access.username,
                password=access.secret(self._directory / name),
                path=access.database,
                query=shape.query,
            )
            for key, access in described.endpoints.items()
        }

    def _used_instead(self, name: str, used: str, asked: str) -> None:
        self._add(
            ("services", name, "type"),
            f"{used} is used instead of {asked}",
            "differences between them are not tested",
            "",
            Severity.NOTE,
        )

    def _not_rehearsed(self, name: str, service: Service, kind: str) -> None:
        package = PACKAGES.get(kind)
        self.gaps[name] = f"the service {name}"
        self._add(
            ("services", name, "type"),
            f"the service {name} ({service.type}) does not run in this rehearsal",
            "the application has its variables, but cannot connect to it",
            f"install it (Debian package: {package})" if package else "",
            Severity.NOT_REHEARSED,
        )

    def _add(
        self, keys: tuple[str, ...], message: str, effect: str, fix: str, severity: Severity
    ) -> None:
        place = self._configuration.place(*keys)
        self._found.append(
            Finding(STAGE, message, effect, fix, severity, file=place.file, line=place.line)
        )


def copy(source: Path, target: Path) -> None:
    """Copy the data of all services to another environment, which has none.

    Raises:
        ServiceError: a service is in use.
    """
    for directory in sorted(source.glob("*/")):
        with unused(directory):
            ignored = shutil.ignore_patterns("holders", "keeper", "lock", "log", "postmaster.pid")
            copied = target / directory.name
            shutil.copytree(directory, copied, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            if os.geteuid() == 0:  # then PostgreSQL's files belong to another user
                for path in (copied, *copied.rglob("*")):
                    status = (directory / path.relative_to(copied)).lstat()
                    os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)


def remove(directory: Path) -> None:
    """Remove the data of all services of an environment.

    Raises:
        ServiceError: a service is in use.
    """
    for service in sorted(directory.glob("*/")):
        with unused(service):
            shutil.rmtree(service)


@contextmanager
def unused(directory: Path) -> Iterator[None]:
    """Keep a service from running during a block.

    Raises:
        ServiceError: a rehearsal is using it.
    """
    # Only PostgreSQL may outlive a rehearsal that was killed, by a moment.
    is_postgresql = (directory / "keeper").exists()
    try:
        with stopped(directory) if is_postgresql else nullcontext():
            yield
    except PostgresError:
        raise ServiceError(
            f"The service {directory.name} is in use. Stop the rehearsal that uses it."
        ) from None
