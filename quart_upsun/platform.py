"""What the platform says about this container. The only module that reads `PLATFORM_*`."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PREVIEW_TYPES = {"staging", "development"}
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Environment:
    """One Upsun environment, seen from a running container."""

    name: str
    """The environment's machine name, such as `main-bvxea6i`."""
    type: str
    """`production`, `staging` or `development`; `unknown` where nobody tells."""
    release: str
    """The id of the source tree this container was built from."""
    branch: str
    """The Git branch it was made from; the environment's name where nobody tells."""
    origin: str | None
    """Scheme and host under which the public reaches the application."""
    hosts: frozenset[str]
    """Every host whose requests a route sends here; empty where no routes are told."""
    smtp_host: str
    """The platform's mail server; empty where mail is off."""
    databases: frozenset[tuple[str, int]] = frozenset()
    """Host and port of each PostgreSQL service that a relationship of this container leads to."""

    @property
    def is_preview(self) -> bool:
        """Whether this is one of the environments that are made to look at, on production's data.

        An unknown type gets the least rights: nothing is done there that only previews may do.
        """
        return self.type in PREVIEW_TYPES


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """What a container may use."""

    memory: int
    """Megabytes."""
    cpu: float
    """Cores; a fraction is common."""


def environment(environ: Mapping[str, str]) -> Environment | None:
    """Return the environment this process runs in; None at build time and off the platform.

    Two variables are asked for, because a shell with a tunnel to the database has some of the
    platform's variables as well, and must not pass for a container.
    """
    application = environ.get("PLATFORM_APPLICATION_NAME")
    name = environ.get("PLATFORM_ENVIRONMENT")
    if not application or not name:
        return None
    urls = _urls(environ.get("PLATFORM_ROUTES", ""), application)
    return Environment(
        name=name,
        type=environ.get("PLATFORM_ENVIRONMENT_TYPE") or UNKNOWN,
        release=environ.get("PLATFORM_TREE_ID", ""),
        branch=environ.get("PLATFORM_BRANCH") or name,
        origin=urls[0] if urls else None,
        hosts=frozenset(url.partition("://")[2].lower() for url in urls),
        smtp_host=environ.get("PLATFORM_SMTP_HOST", ""),
        databases=_databases(environ.get("PLATFORM_RELATIONSHIPS", "")),
    )


def container_limits(path: Path = Path("/run/config.json")) -> ContainerLimits | None:
    """Return the container's limits; None where the platform does not tell.

    `os.cpu_count()` may see the whole host, so it is no help here.
    """
    try:
        info = json.loads(path.read_text())["info"]["limits"]
        return ContainerLimits(memory=int(info["memory"]), cpu=float(info.get("cpu", 1)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _databases(encoded: str) -> frozenset[tuple[str, int]]:
    """Return the PostgreSQL services in `PLATFORM_RELATIONSHIPS`.

    The variable is base64 of a JSON object: a list of endpoints by the name of the relationship.
    """
    try:
        relationships = json.loads(base64.b64decode(encoded, validate=True))
        return frozenset(
            (endpoint["host"], int(endpoint["port"]))
            for endpoints in relationships.values()
            for endpoint in (endpoints if isinstance(endpoints, list) else endpoints.values())
            if endpoint.get("scheme") == "pgsql"
        )
    except (binascii.Error, ValueError, AttributeError, KeyError, TypeError):
        return frozenset()


def _urls(encoded: str, application: str) -> list[str]:
    """Return scheme and host of each upstream route in `PLATFORM_ROUTES`, the primary first.

    The variable is base64 of a JSON object by URL.
    """
    try:
        routes = json.loads(base64.b64decode(encoded, validate=True))
        found = sorted(
            (not route.get("primary"), not url.startswith("https:"), url)
            for url, route in routes.items()
            if route.get("type") == "upstream"
            and str(route.get("upstream", "")).partition(":")[0] == application
        )
    except (binascii.Error, ValueError, AttributeError):
        return []
    parts = [urlsplit(url) for _, _, url in found]
    return [f"{url.scheme}://{url.netloc}" for url in parts]
