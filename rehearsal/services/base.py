"""What all services share: their error, their documented values, and access to databases."""

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rehearsal.locks import persistent_secret


class ServiceError(Exception):
    """The rehearsal cannot run, for example because a service is unavailable.

    The message is one sentence.
    """


@dataclass(frozen=True)
class Shape:
    """The documented values of a relationship with a service of one type."""

    endpoint: str
    """The default endpoint, which is `rel` in a relationship."""
    scheme: str
    port: int
    username: str | None = None
    has_password: bool = False
    path: str | None = None
    query: Mapping[str, Any] = field(default_factory=dict)


SHAPES = {
    "chrome-headless": Shape("http", "http", 9222),
    "clickhouse": Shape(
        "clickhouse", "https", 9000, "main", True, "main", query={"is_master": True}
    ),
    "elasticsearch": Shape("elasticsearch", "http", 9200),
    "elasticsearch-enterprise": Shape("elasticsearch", "http", 9200),
    "gotenberg": Shape("http", "http", 3000),
    "influxdb": Shape(
        *("influxdb", "http", 8086, "admin", True),
        query={"org": "main", "bucket": "main", "api_token": "rehearsal"},
    ),
    "kafka": Shape("kafka", "kafka", 9092),
    "mariadb": Shape("mysql", "mysql", 3306, "user", False, "main", {"is_master": True}),
    "memcached": Shape("memcached", "memcached", 11211),
    "mercure": Shape("mercure", "http", 3000, has_password=True),
    "mongodb": Shape("mongodb", "mongodb", 27017, "main", False, "main", {"is_master": True}),
    "opensearch": Shape("opensearch", "http", 9200),
    "postgresql": Shape("postgresql", "pgsql", 5432, "main", True, "main", {"is_master": True}),
    "rabbitmq": Shape("rabbitmq", "amqp", 5672, "guest", True),
    "redis": Shape("redis", "redis", 6379),
    "solr": Shape("solr", "solr", 8080, path="solr/collection1"),
    "valkey": Shape("valkey", "valkey", 6379),
    "varnish": Shape("http", "http", 8080),
    "vault-kms": Shape(
        "manage_keys", "http", 8200, has_password=True, path="/", query={"is_master": True}
    ),
}
"""By type, from the pages under https://docs.upsun.com/add-services.html, read in August 2026."""

VARIANTS = {
    "mongodb-enterprise": "mongodb",
    "mysql": "mariadb",
    "oracle-mysql": "mariadb",
    "redis-persistent": "redis",
    "valkey-persistent": "valkey",
    # Read-only copies of another service of the project; the documentation has both names.
    "mariadb-replica": "mariadb",
    "mysql-replica": "mariadb",
    "postgres-replica": "postgresql",
    "postgresql-replica": "postgresql",
}
"""Types with the relationships of another type."""


def family(kind: str) -> str:
    """Return the type in `SHAPES` that a service's type belongs to."""
    return VARIANTS.get(kind, kind)


@dataclass(frozen=True)
class Access:
    """What one endpoint of a database service may do."""

    username: str
    database: str | None
    """The default database; None if the configuration does not name one."""
    privileges: Mapping[str, str]
    """`admin`, `rw`, `ro` or `replication`, by database."""
    has_password: bool = True

    def secret(self, directory: Path) -> str:
        """Return its password, which is created in the service's directory on first use.

        It is letters and digits, as in the documentation; "" if the endpoint has none.
        """
        if not self.has_password:
            return ""
        name = re.sub(r"\W", "_", self.username)
        return persistent_secret(directory / f"password-{name}", secrets.token_hex(16))


@dataclass(frozen=True)
class Accounts:
    """The databases and endpoints of a database service."""

    databases: Sequence[str]
    endpoints: Mapping[str, Access]

    def with_readers(self, names: Iterable[str]) -> "Accounts":
        """Return the same accounts with read-only endpoints for the service's replicas."""
        readers = {
            name: Access(name, self.databases[0], dict.fromkeys(self.databases, "ro"))
            for name in names
        }
        return Accounts(self.databases, {**self.endpoints, **readers})

    def may(self, database: str, *privileges: str) -> list[Access]:
        """Return the endpoints with one of the privileges for a database."""
        return [
            access
            for access in self.endpoints.values()
            if access.privileges.get(database) in privileges
        ]


def accounts(
    configuration: Mapping[str, Any], shape: Shape, *, databases: str, default: str
) -> Accounts:
    """Return the databases and endpoints that a service's `configuration` describes.

    Args:
        configuration: the mapping at `services.NAME.configuration`.
        shape: the values without a configuration.
        databases: the key with the list of databases: `databases` or `schemas`.
        default: the key with an endpoint's default database.
    """
    listed = configuration.get(databases)
    names = [str(name) for name in listed] if isinstance(listed, list) and listed else ["main"]
    described = configuration.get("endpoints")
    endpoints: dict[str, Access] = {}
    for name, endpoint in described.items() if isinstance(described, Mapping) else ():
        values = endpoint if isinstance(endpoint, Mapping) else {}
        privileges = values.get("privileges")
        granted = privileges if isinstance(privileges, Mapping) else {}
        if values.get("replication") is True:
            granted = {**granted, **dict.fromkeys(names, "replication")}
        database = values.get(default)
        endpoints[str(name)] = Access(
            username=str(name),
            database=str(database) if database else None,
            privileges={str(key): str(value) for key, value in granted.items() if key in names},
        )
    if not endpoints:
        # Without endpoints there is one user with all privileges.
        all_of_them = dict.fromkeys(names, "admin")
        first = "main" if "main" in names else names[0]
        endpoints[shape.endpoint] = Access(
            shape.username or "main", first, all_of_them, shape.has_password
        )
    return Accounts(names, endpoints)
