"""The environment variables that the platform sets in a container, in the documented format."""

import base64
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rehearsal.configuration import Application, Configuration
from rehearsal.locks import persistent_secret

# Variables that configure package managers on this machine.
REGISTRIES = (
    *("PIP_", "NPM_CONFIG_", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_FIND_LINKS"),
    *("SSL_CERT_", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
PROJECT = "rehearsal0000"
# The form of the platform's generated hosts, in a region that does not exist.
SITE = f"{PROJECT}.xx-1.platformsh.site"


@dataclass(frozen=True)
class Environment:
    """An Upsun environment."""

    name: str
    """The Git branch, such as `main`."""
    type: str
    """`production`, `staging` or `development`."""
    entropy: str
    """The project's entropy, the same in all environments."""
    own_domain: str | None = None
    """The project's own domain; None if it has none."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """The variables with the prefix `env:` that are set outside the configuration."""

    @property
    def machine_name(self) -> str:
        """Return the value of `PLATFORM_ENVIRONMENT`."""
        return f"{self.name}-rehears"

    @property
    def domain(self) -> str:
        """Return the value of `{default}` in a route."""
        generated = f"{self.machine_name}-{SITE}"
        if self.own_domain is None:
            return generated
        return self.own_domain if self.type == "production" else f"{self.own_domain}.{generated}"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of a service or of an application, as a relationship describes it."""

    service: str
    type: str
    """The type with its version, such as `postgresql:18`."""
    rel: str
    """The name of the endpoint, such as `mysql`."""
    scheme: str
    port: int
    ip: str = "127.0.0.1"
    username: str | None = None
    password: str | None = None
    path: str | None = None
    query: Mapping[str, Any] | None = None

    def relationship(self, name: str, *, named: bool) -> dict[str, Any]:
        """Return its entry in `PLATFORM_RELATIONSHIPS`.

        Args:
            name: the name of the relationship.
            named: whether host names such as `postgresql.internal` can be resolved.
        """
        return {
            "username": self.username,
            "scheme": self.scheme,
            "service": self.service,
            "fragment": None,
            "ip": self.ip,
            "instance_ips": [self.ip],
            "hostname": f"rehearsal.{self.service}.service._.xx-1.platformsh.site",
            "port": self.port,
            "cluster": f"{PROJECT}-rehears",
            "epoch": 0,
            "host": host_name(name) if named else self.ip,
            "rel": self.rel,
            "path": self.path,
            "query": dict(self.query or {}),
            "password": self.password,
            "type": self.type,
            "public": False,
            "host_mapped": False,
        }

    def variables(self, name: str, *, named: bool) -> dict[str, str]:
        """Return its service variables, such as `POSTGRESQL_HOST`; see `relationship`."""
        values = self.relationship(name, named=named)
        if name == "database" and self.path:
            # Documented for a relationship of this name.
            user, password = (quote(text or "", safe="") for text in (self.username, self.password))
            address = f"{values['host']}:{self.port}"
            values["name"] = self.path
            values["url"] = f"{self.scheme}://{user}:{password}@{address}/{self.path}"
        prefix = re.sub(r"[^0-9A-Z_]", "_", name.upper())
        return {f"{prefix}_{key.upper()}": _written(value) for key, value in values.items()}


def host_name(relationship: str) -> str:
    """Return the host name by which a container reaches the other end of a relationship."""
    return f"{relationship}.internal"


def _written(value: object) -> str:
    """Return a value as in a service variable: lists and mappings as Python writes them."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def project_entropy(state: Path) -> str:
    """Return the project's entropy, which never changes."""
    return persistent_secret(state / "entropy", secrets.token_hex(28).upper())


def encode(value: object) -> str:
    """Encode a structure for a `PLATFORM_*` variable: Base64 of JSON."""
    return base64.b64encode(json.dumps(value, default=str).encode()).decode()


def build_variables(
    configuration: Configuration,
    name: str,
    *,
    release: str,
    entropy: str,
    directory: str,
    cache: str,
    variables: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the variables of a build container, with this machine's package manager settings.

    `variables` are set outside the configuration and override it; see `Environment`.
    """
    passed = {
        variable: value
        for variable, value in os.environ.items()
        if variable.upper().startswith(REGISTRIES) or variable.upper() in PROXIES
    }
    # HOME is the application's directory there, so package managers do not find these files.
    npm = shutil.which("npm")
    for variable, paths in {
        "PIP_CONFIG_FILE": ("~/.config/pip/pip.conf", "~/.pip/pip.conf"),
        "NPM_CONFIG_USERCONFIG": ("~/.npmrc",),
        "NPM_CONFIG_GLOBALCONFIG": (str(Path(npm).parents[1] / "etc/npmrc"),) if npm else (),
    }.items():
        for path in map(os.path.expanduser, paths):
            if variable not in passed and os.path.exists(path):
                passed[variable] = path
    return passed | {
        "CI": "1",
        "PIP_USER": "1",  # as in Upsun's Python image
        "NPM_CONFIG_PREFIX": f"{directory}/.global",  # the documentation unsets it for nvm
        # Downloads are kept between builds.
        "PIP_CACHE_DIR": f"{cache}/pip",
        "NPM_CONFIG_CACHE": f"{cache}/npm",
        **_own(configuration.applications[name]),
        **(variables or {}),
        "PLATFORM_APP_DIR": directory,
        "PLATFORM_APPLICATION": encode(configuration.raw["applications"][name]),
        "PLATFORM_APPLICATION_NAME": name,
        "PLATFORM_CACHE_DIR": cache,
        "PLATFORM_OUTPUT_DIR": directory,
        "PLATFORM_PROJECT": PROJECT,
        "PLATFORM_PROJECT_ENTROPY": entropy,
        "PLATFORM_SOURCE_DIR": directory,
        "PLATFORM_TREE_ID": release,
        "PLATFORM_VARIABLES": encode(_other(configuration.applications[name])),
        "PLATFORM_VENDOR": "upsun",
    }


def runtime_variables(
    configuration: Configuration,
    name: str,
    *,
    release: str,
    environment: Environment,
    endpoints: Mapping[str, Endpoint],
    named: bool,
    directory: str,
    port: int,
    socket: str,
) -> dict[str, str]:
    """Return the variables of a running container.

    Args:
        configuration: the commit's configuration.
        name: the name of the application.
        release: the hash of the commit's tree.
        environment: the environment to deploy to.
        endpoints: the endpoints, by the name of their relationship.
        named: whether the container can resolve the host names of relationships.
        directory: the application's directory in the container.
        port: the value of PORT.
        socket: the value of SOCKET.
    """
    return {
        **_own(configuration.applications[name]),
        **environment.variables,
        **relationship_variables(endpoints, named=named),
        "PLATFORM_APP_DIR": directory,
        "PLATFORM_APPLICATION": encode(configuration.raw["applications"][name]),
        "PLATFORM_APPLICATION_NAME": name,
        "PLATFORM_BRANCH": environment.name,
        "PLATFORM_ENVIRONMENT": environment.machine_name,
        "PLATFORM_ENVIRONMENT_TYPE": environment.type,
        "PLATFORM_PROJECT": PROJECT,
        "PLATFORM_PROJECT_ENTROPY": environment.entropy,
        "PLATFORM_ROUTES": encode(routes(configuration, environment)),
        "PLATFORM_SMTP_HOST": "",  # outgoing mail is disabled: a rehearsal must not send any
        "PLATFORM_TREE_ID": release,
        "PLATFORM_VARIABLES": encode(_other(configuration.applications[name])),
        "PLATFORM_VENDOR": "upsun",
        "PORT": str(port),
        "SOCKET": socket,
    }


def relationship_variables(endpoints: Mapping[str, Endpoint], *, named: bool) -> dict[str, str]:
    """Return the variables that describe the relationships; see `runtime_variables`."""
    found: dict[str, str] = {}
    for name, endpoint in endpoints.items():
        found |= endpoint.variables(name, named=named)
    described = {
        name: [endpoint.relationship(name, named=named)] for name, endpoint in endpoints.items()
    }
    return found | {"PLATFORM_RELATIONSHIPS": encode(described)}


def routes(configuration: Configuration, environment: Environment) -> dict[str, dict[str, Any]]:
    """Return the content of `PLATFORM_ROUTES`, by URL."""
    upstreams = [url for url, route in configuration.routes.items() if route.application]
    named = any(route.primary for route in configuration.routes.values())
    found = {}
    for url, route in configuration.routes.items():
        public = url.replace("{default}", environment.domain).replace("{all}", environment.domain)
        primary = bool(route.primary) if named else url == next(iter(upstreams), None)
        entry: dict[str, Any] = {
            "primary": primary,
            "id": route.id,
            "type": route.type,
            "original_url": url,
        }
        if route.application:
            entry["upstream"] = route.application
        elif route.to:
            entry["to"] = route.to.replace("{default}", environment.domain)
        found[public if public.endswith("/") else f"{public}/"] = entry
    return found


def _own(application: Application) -> dict[str, str]:
    """Return the variables that the configuration sets under `variables.env`.

    The platform writes their names in upper case. They are here under both names, because no source
    says that the other one does not exist. Values that are not text are JSON.
    Source: "Use environment variables" and "Top-level environment variables" in the documentation.
    """
    found: dict[str, str] = {}
    for name, value in application.variables.get("env", {}).items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        found |= dict.fromkeys((name, name.upper()), "" if value is None else text)
    return found


def _other(application: Application) -> dict[str, Any]:
    """Return the content of `PLATFORM_VARIABLES`: the variables with another prefix than `env`."""
    return {
        f"{prefix}:{name}": value
        for prefix, variables in application.variables.items()
        for name, value in variables.items()
        if prefix != "env"
    }
