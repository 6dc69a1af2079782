"""The Upsun environment of this container. The only module that reads `PLATFORM_*`."""

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
    """An Upsun environment, as seen from a running container."""

    name: str
    """The environment's machine name, such as `main-bvxea6i`."""
    type: str
    """`production`, `staging` or `development`; `unknown` if the platform does not say."""
    release: str
    """The id of the source tree that this container was built from."""
    branch: str
    """The Git branch of the environment; its name if the platform does not say."""
    origin: str | None
    """The public origin (scheme and host) of the application; None without a route."""
    hosts: frozenset[str]
    """All hosts with a route to this application; empty if the routes are unknown."""
    smtp_host: str
    """The platform's mail server; empty if mail is disabled."""
    databases: frozenset[tuple[str, int]] = frozenset()
    """Host and port of each PostgreSQL service in a relationship of this container."""
    application: str = "app"
    """The name of the application in `.upsun/config.yaml`."""

    @property
    def is_preview(self) -> bool:
        """Whether this is a preview environment, which has a copy of production's data.

        An environment of unknown type does not count as a preview.
        """
        return self.type in PREVIEW_TYPES


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """The resource limits of a container."""

    memory: int
    """Megabytes."""
    cpu: float
    """CPU cores; often a fraction."""


def environment(environ: Mapping[str, str]) -> Environment | None:
    """Return the environment of this process; None at build time and off Upsun.

    It requires two variables, because a shell with a tunnel to the database has some of the
    platform's variables too and is not a container.
    """
    application = environ.get("PLATFORM_APPLICATION_NAME")
    name = environ.get("PLATFORM_ENVIRONMENT")
    if not application or not name:
        return None
    urls = _urls(environ.get("PLATFORM_ROUTES", ""), application)
    return Environment(
        name=name,
        type=environ.get("PLATFORM_ENVIRONMENT_TYPE") or UNKNOWN,
        application=application,
        release=environ.get("PLATFORM_TREE_ID", ""),
        branch=environ.get("PLATFORM_BRANCH") or name,
        origin=urls[0] if urls else None,
        hosts=frozenset(url.partition("://")[2].lower() for url in urls),
        smtp_host=environ.get("PLATFORM_SMTP_HOST", ""),
        databases=_databases(environ.get("PLATFORM_RELATIONSHIPS", "")),
    )


def container_limits(path: Path = Path("/run/config.json")) -> ContainerLimits | None:
    """Return the container's resource limits; None if they are unknown.

    `os.cpu_count()` is of no use here, because it may return the cores of the host.
    """
    try:
        info = json.loads(path.read_text())["info"]["limits"]
        return ContainerLimits(memory=int(info["memory"]), cpu=float(info.get("cpu", 1)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _databases(encoded: str) -> frozenset[tuple[str, int]]:
    """Return the PostgreSQL services in `PLATFORM_RELATIONSHIPS`.

    The variable is a base64-encoded JSON object that maps relationship names to lists of endpoints.
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

    The variable is a base64-encoded JSON object that maps URLs to routes.
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
