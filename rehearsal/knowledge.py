"""What this version knows about Upsun: runtimes, services, and the keys of the configuration.

Update `AS_OF` together with the tables. While the tables are recent, a name or version that is
not in them is an error; once they are old, it is only a warning.

Sources, all read as of `AS_OF`:

- the image registry in the public repository `upsun/meta`, `resources/image/registry.json` and
  `composable.json` (versions, endpoints, and the end of upstream support)
- the JSON schema that `upsun validate` uses, `resources/validation/upsun.json` in `upsun/meta`
- the documentation: https://developer.upsun.com/docs (keys that the schema does not have yet:
  `sticky`, `tasks`, `additional_hosts` of workers; replicas; limits of crons)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from rehearsal.shapes import (
    Anything,
    Boolean,
    Either,
    Integer,
    ListOf,
    Names,
    Optional,
    Shape,
    Table,
    Text,
)

AS_OF = date(2026, 8, 17)
MAX_AGE = timedelta(days=183)

HTTP = frozenset({"http"})


@dataclass(frozen=True)
class Image:
    """A runtime or a service."""

    supported: Mapping[str, str]
    """The end of upstream support of each supported version, as `2030-10`; "" if unknown."""
    deprecated: Mapping[str, str] = field(default_factory=dict)
    """The same for deprecated versions."""
    retired: str = ""
    """Versions that still deploy but get no updates, separated by spaces."""
    removed: str = ""
    """Versions that no longer deploy."""
    endpoints: frozenset[str] = HTTP
    """The default endpoints."""

    def versions(self) -> list[str]:
        """Return all versions that deploy, the newest supported one first."""
        return [*self.supported, *self.deprecated, *self.retired.split()]


RUNTIMES = {
    "composable": Image({"26.05": ""}, retired="25.11 25.05 24.11 24.05 23.11"),
    "dotnet": Image({"10.0": "2028-11", "8.0": "2026-11"}, retired="7.0 6.0 5.0 3.1 2.2 2.1 2.0"),
    "elixir": Image(
        {"1.20": ""}, {"1.19": "", "1.18": ""}, retired="1.15 1.14 1.13 1.12 1.11 1.10 1.9"
    ),
    "golang": Image(
        {"1.26": "", "1.25": ""},
        retired="1.24 1.23 1.22 1.21 1.20 1.19 1.18 1.17 1.16 1.15 1.14 1.13 1.12 1.11 1.10",
        removed="1.9 1.8",
    ),
    "java": Image(
        {"25": "2030-09", "21": "2028-09", "17": "2026-09"}, retired="19 18 14 13 12 11 8"
    ),
    "nodejs": Image(
        {"26": "2029-04", "24": "2028-04"},
        {"22": "2027-04"},
        retired="20 18 16 14 12 10 8.9 8.5 8 6.10 6.9 6.8 6.6 6.3 6.2 6 4.8 4.7 4.6 4.5 4.4 4.3"
        " 4.2",
        removed="0.12",
    ),
    "php": Image(
        {"8.5": "2029-12", "8.4": "2028-12"},
        {"8.3": "2027-12", "8.2": "2026-12"},
        retired="8.1 8.0 7.4 7.3 7.2 7.1 7.0 5.6 5.5 5.4",
        endpoints=frozenset({"http", "php"}),
    ),
    "python": Image(
        {"3.14": "2030-10", "3.13": "2029-10"},
        {"3.12": "2028-10", "3.11": "2027-10", "3.10": "2026-10"},
        retired="3.9 3.8 3.7 3.6 3.5 2.7",
    ),
    "ruby": Image(
        {"4.0": "2029-03", "3.4": "2028-03", "3.3": "2027-03"},
        retired="3.2 3.1 3.0 2.7 2.6 2.5 2.4 2.3",
    ),
    "rust": Image({"1": ""}),
}

POSTGRESQL = Image(
    {"18": "2030-11", "17": "2029-11", "16": "2028-11", "15": "2027-11", "14": "2026-11"},
    retired="13 12 11 10 9.6 9.5 9.4 9.3",
    endpoints=frozenset({"postgresql", "postgresql-replica"}),
)
MARIADB = Image(
    {"12.3": "2029-06", "11.8": "2028-06", "11.4": "2029-05"},
    retired="11.2 11.0 10.11 10.6 10.5 10.4 10.3 10.2 10.1 10.0 5.5",
    endpoints=frozenset({"mysql"}),
)
REDIS = Image(
    {"8.8": "", "8.0": "2026-02"},
    {"7.2": "", "6.2": ""},
    retired="7.0 6.0 5.0",
    removed="4.0 3.2 3.0 2.8",
    endpoints=frozenset({"redis", "redis-replica"}),
)
VALKEY = Image(
    {"9.0": "2028-10", "8.1": "2030-03", "8.0": "2027-09"}, endpoints=frozenset({"valkey"})
)

SERVICES = {
    "chrome-headless": Image(
        {"120": "2024-01", "113": "2023-05"}, retired="95 91 86 84 83 81 80 73"
    ),
    "clickhouse": Image(
        {"26.3": "", "25.8": ""},
        {"25.3": "", "24.3": "", "23.8": ""},
        endpoints=frozenset({"clickhouse", "clickhouse-http"}),
    ),
    "elasticsearch": Image(
        {"7.10": "2026-01"},
        # 7.17 and 8.5 were versions of this service before elasticsearch-enterprise existed.
        retired="8.5 7.17 7.9 7.7 7.6 7.5 7.2 6.8 6.5",
        removed="5.4 5.2 2.4 1.7 1.4 0.90",
        endpoints=frozenset({"elasticsearch"}),
    ),
    "elasticsearch-enterprise": Image(
        {"9.3": "", "8.19": "2027-07"},
        retired="7.17",
        removed="8.5",
        endpoints=frozenset({"elasticsearch"}),
    ),
    "gotenberg": Image({"8": ""}),
    "influxdb": Image(
        {"3": "", "2.7": "", "2.3": ""},
        retired="2.2 2.0 1.8 1.7 1.3 1.2",
        endpoints=frozenset({"influxdb"}),
    ),
    "kafka": Image(
        {"4.3": "", "4.1": ""},
        retired="3.7 3.6 3.4 3.2 2.7 2.6 2.5 2.4 2.3 2.2 2.1",
        endpoints=frozenset({"kafka"}),
    ),
    "mariadb": MARIADB,
    "mariadb-replica": MARIADB,
    "memcached": Image({"1.6": ""}, retired="1.5 1.4", endpoints=frozenset({"memcached"})),
    "mercure": Image({"0": ""}, endpoints=frozenset({"http", "mercure"})),
    "mongodb": Image(
        {"4.0": "2022-04"},
        retired="4.0.3 3.6 3.4 3.2 3.0",
        endpoints=frozenset({"mongodb"}),
    ),
    "mongodb-enterprise": Image(
        {"7.0": "2027-08"}, retired="6.0 5.0 4.4 4.2 4.0", endpoints=frozenset({"mongodb"})
    ),
    "mysql": MARIADB,  # another name for MariaDB
    "network-storage": Image({"1.0": ""}, {"2.0": ""}, endpoints=frozenset()),
    "object-storage": Image({}, endpoints=frozenset()),
    "opensearch": Image(
        {"3": ""}, {"2": ""}, retired="1.2 1.1 1", endpoints=frozenset({"opensearch"})
    ),
    "oracle-mysql": Image(
        {"8.4": "2032-04"}, retired="8.0 5.7", endpoints=frozenset({"mysql", "mysqlx"})
    ),
    "postgres-replica": POSTGRESQL,
    "postgresql": POSTGRESQL,
    "postgresql-replica": POSTGRESQL,
    "rabbitmq": Image(
        {"4.3": "", "4.2": "2026-07"},
        retired="4.1 4.0 3.13 3.12 3.11 3.10 3.9 3.8 3.7 3.6 3.5",
        endpoints=frozenset({"rabbitmq"}),
    ),
    "redis": REDIS,
    "redis-persistent": REDIS,
    "solr": Image(
        {"10.0": "", "9.9": "", "9.6": "", "9.4": "", "9.2": "", "9.1": ""},
        retired="9.0 8.11 8.6 8.4 8.0 7.7 7.6 6.6 6.3 4.10 3.6",
        endpoints=frozenset({"solr"}),
    ),
    "valkey": VALKEY,
    "valkey-persistent": VALKEY,
    "varnish": Image(
        {"9.0": "2027-03", "6.0": ""},
        retired="7.6 7.3 7.2 7.1 6.4 6.3",
        removed="5.2 5.1",
        endpoints=frozenset({"http", "http+stats"}),
    ),
    "vault-kms": Image({"1.12": ""}, removed="1.8 1.6", endpoints=frozenset()),
}

# The runtimes of composable images, by the name in `stack`.
STACKS = {
    "bun": "1",
    "clojure": "1",
    "elixir": "1.20 1.19 1.18 1.17",
    "golang": "1.26 1.25 1.24",
    "java": "25 21",
    "nodejs": "26 24 22 20",
    "perl": "5",
    "php": "8.5 8.4 8.3 8.2",
    "python": "3.14 3.13 3.12 3.11",
    "ruby": "4.0 3.4 3.3",
    "sbcl": "2",
}

# The memory of each container profile in MB, by the number of CPUs. Source: "Adjust resources" and
# "Resource initialization" in the documentation.
SIZES: dict[str, dict[float, int]] = {
    "HIGH_CPU": {0.1: 64, 0.25: 128, 0.5: 224, 1: 384, 2: 704, 4: 1216, 6: 1728, 8: 2240},
    "BALANCED": {0.1: 352, 0.25: 640, 0.5: 1088, 1: 1920, 2: 2800, 4: 4800, 6: 6080, 8: 7296},
    "HIGH_MEMORY": {0.1: 448, 0.25: 832, 0.5: 1408, 1: 2432, 2: 4032, 4: 6720, 6: 9024, 8: 11200},
    "HIGHER_MEMORY": {
        0.1: 864,
        0.25: 1472,
        0.5: 2368,
        1: 3840,
        2: 6336,
        4: 10496,
        6: 14080,
        8: 17408,
    },
}
DEFAULT_CPU = 0.5  # of a container on its first deploy
DEFAULT_PROFILE = "HIGH_CPU"  # of most runtimes
PROFILES = tuple(SIZES)


def default_memory(profile: str | None) -> int:
    """Return the memory of a container on its first deploy, in MB.

    Args:
        profile: the container profile; None or an unknown one stands for the default.
    """
    return SIZES[profile if profile in SIZES else DEFAULT_PROFILE][DEFAULT_CPU]


MIN_CRON_MINUTES = 5  # between two runs

# The keys of the configuration. `Table` is closed unless it says otherwise.

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
DURATION = Either(
    (
        Integer(),
        Text(
            pattern=r"-?\d+(ms|[smhdwMy])?( \d+(ms|[smhdwMy]))*|off|epoch|max",
            meaning="a duration such as `1h`",
        ),
    )
)
ROLE = Text(values=("viewer", "contributor", "admin"))

VARIABLES = Names(Names(Anything()))
FIREWALL = Optional(
    Table(
        {
            "outbound": ListOf(
                Table(
                    {
                        "protocol": Text(),
                        "ips": ListOf(Text()),
                        "domains": ListOf(Text()),
                        "ports": ListOf(Integer(1, 65535)),
                    }
                )
            )
        }
    )
)
RESOURCES = Optional(Table({"base_memory": Integer(), "memory_ratio": Integer()}))
RELATIONSHIPS = Names(
    Optional(Either((Text(), Table({"service": Text(), "endpoint": Text()}, is_open=True))))
)
# The documentation calls `local` an alias of `instance` (migrating from Fixed), and has mounts such
# as `shared:files/cache` (projects with several applications). The schema has neither.
SOURCE = "use `storage` (shared by all instances) or `instance` (one per instance)"
OLDER_MOUNT = r"(?P<source>shared|local):files(/(?P<path>.*))?"
MOUNTS = Names(
    Either(
        (
            Table(
                {
                    "source": Text(
                        values=("storage", "instance", "tmp", "temporary", "service"),
                        former={"local": SOURCE, "shared": SOURCE},
                    ),
                    "source_path": Text(),
                    "service": Text(),
                },
                required=("source",),
            ),
            Text(
                pattern=OLDER_MOUNT,
                meaning="a mount such as `{source: storage, source_path: cache}`",
                former={OLDER_MOUNT: "write a mapping with `source` and `source_path`"},
            ),
        )
    )
)
HEADERS = Names(Text(may_be_number=True))
CONTAINER: dict[str, Shape] = {
    "access": Names(ROLE),
    "additional_hosts": Names(Text()),
    "container_profile": Optional(Text(values=PROFILES)),
    "firewall": FIREWALL,
    "mounts": MOUNTS,
    "relationships": RELATIONSHIPS,
    "resources": RESOURCES,
    "timezone": Text(),
    "variables": VARIABLES,
}
COMMANDS: dict[str, Shape] = {
    "pre_start": Text(),
    "start": Text(),
    "post_start": Text(),
    "stop": Text(),
}
RULE: dict[str, Shape] = {
    "allow": Boolean(),
    "expires": DURATION,
    "headers": HEADERS,
    "passthru": Either((Boolean(), Text())),
    "scripts": Boolean(),
}
LOCATION = Table(
    {
        **RULE,
        "index": ListOf(Text()),
        "request_buffering": Table({"enabled": Boolean(), "max_request_size": Text()}),
        "root": Text(),
        "rules": Names(Table(RULE)),
    }
)
WEB = Table(
    {
        **CONTAINER,
        "commands": Table(COMMANDS),
        "locations": Names(LOCATION),
        "size": Text(),
        "upstream": Table(
            {
                "protocol": Text(),
                "socket_family": Text(values=("tcp", "unix")),
            }
        ),
        # Old forms, which the schema still has.
        "blacklist": ListOf(Text()),
        "document_root": Text(),
        "expires": DURATION,
        "index_files": ListOf(Text()),
        "move_to_root": Boolean(),
        "passthru": Text(),
        "whitelist": ListOf(Text()),
    }
)
WORKER = Table(
    {**CONTAINER, "commands": Table(COMMANDS, required=("start",)), "size": Text()},
    required=("commands",),
)
CRON = Table(
    {
        "cmd": Text(),
        "commands": Table({"start": Text(), "stop": Text()}, required=("start",)),
        "shutdown_timeout": Integer(),
        "spec": Text(),
        "timeout": Integer(maximum=86400),
    },
    required=("spec",),
)
RESIZE = "remove it; Upsun sizes containers with `upsun resources:set`"
APPLICATION = Table(
    {
        **CONTAINER,
        "build": Table({"flavor": Optional(Text())}),
        "crons": Names(CRON),
        "dependencies": Names(Names(Anything())),
        "hooks": Table({"build": Text(), "deploy": Text(), "post_deploy": Text()}),
        "operations": Names(
            Table(
                {"commands": Table(COMMANDS, required=("start",), is_open=True), "role": ROLE},
                required=("commands",),
            )
        ),
        "preflight": Table(
            {"enabled": Boolean(), "ignored_rules": ListOf(Text())}, required=("enabled",)
        ),
        "runtime": Table(
            {
                "disabled_extensions": ListOf(Anything()),
                "extensions": ListOf(Anything()),
                "quicklisp": Anything(),
                "request_terminate_timeout": Integer(),
                "sizing_hints": Table(
                    {"request_memory": Integer(10), "reserved_memory": Integer(70)}
                ),
                "xdebug": Anything(),
            },
            is_open=True,
        ),
        "source": Table(
            {
                "operations": Names(Table({"command": Text()}, required=("command",))),
                "root": Text(),
            }
        ),
        "stack": Anything(),  # see checks/versions.py
        "type": Text(),
        "web": WEB,
        "workers": Names(WORKER, NAME, "a valid name for a worker"),
    },
    explained={
        "disk": RESIZE,
        "name": "remove it; the key under `applications` is the name",
        "routes": "move it to the top level of the file",
        "services": "move it to the top level of the file",
        "size": RESIZE,
    },
)
SERVICE = Table(
    {
        "access": Anything(),
        "configuration": Anything(),  # depends on the service
        "container_profile": Optional(Text(values=PROFILES)),
        "firewall": FIREWALL,
        "relationships": RELATIONSHIPS,
        "resources": RESOURCES,
        "size": Text(),
        "type": Text(),
    },
    required=("type",),
    explained={"disk": RESIZE},
)
REDIRECT = Table(
    {
        "append_suffix": Optional(Boolean()),
        "code": Integer(),
        "expires": Optional(DURATION),
        "prefix": Optional(Boolean()),
        "regexp": Boolean(),
        "to": Text(),
    },
    required=("to",),
)
ROUTE = Table(
    {
        "attributes": Names(Text(may_be_number=True)),
        "cache": Table(
            {
                "cookies": ListOf(Text()),
                "default_ttl": Integer(),
                "enabled": Boolean(),
                "headers": ListOf(Text()),
            },
            required=("enabled",),
        ),
        "id": Optional(Text()),
        "primary": Optional(Boolean()),
        "redirects": Table({"expires": DURATION, "paths": Names(REDIRECT)}, required=("paths",)),
        "ssi": Either((Boolean(), Table({"enabled": Boolean()}, required=("enabled",)))),
        "sticky": Boolean(),
        "tls": Table(
            {
                "client_authentication": Optional(Text(values=("request", "require"))),
                "client_certificate_authorities": ListOf(Text()),
                "min_version": Optional(Text(values=("TLSv1.0", "TLSv1.1", "TLSv1.2", "TLSv1.3"))),
                "strict_transport_security": Table(
                    {
                        "enabled": Optional(Boolean()),
                        "include_subdomains": Optional(Boolean()),
                        "preload": Optional(Boolean()),
                    }
                ),
            }
        ),
        "to": Text(),
        "type": Text(values=("upstream", "redirect", "proxy")),
        "upstream": Text(),
    }
)
DOCUMENT = Table(
    {
        "applications": Names(APPLICATION, NAME, "a valid name for an application"),
        "routes": Optional(Names(ROUTE, r"https?://.+", 'a URL such as "https://{default}/"')),
        "services": Optional(Names(SERVICE, NAME, "a valid name for a service")),
        "tasks": Anything(),
    },
    required=("applications",),
    is_open=True,
    free=r"x-.*|\..*",
)


def is_recent(today: date | None = None) -> bool:
    """Return whether the tables are recent enough to call unknown names and versions wrong."""
    return (today or datetime.now(UTC).date()) - AS_OF <= MAX_AGE


def scope() -> str:
    """Return the date of the tables, as the consequence of a finding that depends on it."""
    return f"this version knows Upsun as of {AS_OF:%B %Y}"
