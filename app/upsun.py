"""What the platform says about this container. The only module that reads `PLATFORM_*`."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Environment:
    """One Upsun environment, seen from a running container."""

    name: str
    """The environment's machine name, such as `main-bvxea6i`."""
    type: str
    """`production`, `staging` or `development`."""
    release: str
    """The id of the source tree this container was built from."""
    origin: str | None
    """Scheme and host under which the public reaches the application."""


@dataclass(frozen=True, slots=True)
class Limits:
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
    return Environment(
        name=name,
        # An unknown type gets the least rights: nothing is done there that only previews may do.
        type=environ.get("PLATFORM_ENVIRONMENT_TYPE") or "production",
        release=environ.get("PLATFORM_TREE_ID", ""),
        origin=_origin(environ.get("PLATFORM_ROUTES", ""), application),
    )


def limits(path: Path = Path("/run/config.json")) -> Limits | None:
    """Return the container's limits; None where the platform does not tell.

    `os.cpu_count()` may see the whole host, so it is no help here.
    """
    try:
        info = json.loads(path.read_text())["info"]["limits"]
        return Limits(memory=int(info["memory"]), cpu=float(info.get("cpu", 1)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _origin(encoded: str, application: str) -> str | None:
    """Find the primary upstream route in `PLATFORM_ROUTES` (base64 of JSON, by URL)."""
    try:
        routes = json.loads(base64.b64decode(encoded, validate=True))
        candidates = [
            (not route.get("primary"), not url.startswith("https:"), url)
            for url, route in routes.items()
            if route.get("type") == "upstream"
            and str(route.get("upstream", "")).partition(":")[0] == application
        ]
    except (binascii.Error, ValueError, AttributeError):
        return None
    if not candidates:
        return None
    # Primary first, then https before http.
    url = urlsplit(min(candidates)[-1])
    return f"{url.scheme}://{url.netloc}"
