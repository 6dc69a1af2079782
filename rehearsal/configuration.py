"""Read `.upsun/config.yaml` into models, and record the line of each key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rehearsal.findings import Place

CONFIG_FILE = ".upsun/config.yaml"

Keys = tuple[str, ...]  # the path from the root of the document to a value


class ConfigurationError(Exception):
    """The configuration is invalid; each problem is a message and its line, counted from 1.

    The line is 0 if it is unknown.
    """

    def __init__(self, problems: list[tuple[str, int]]) -> None:
        super().__init__("; ".join(message for message, _ in problems))
        self.problems = problems


class Part(BaseModel):
    """A mapping of the file. An unknown key is an error, as on the platform."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _empty(value: Any) -> Any:
    return {} if value is None else value


class Mount(Part):
    """A directory that is writable at runtime."""

    source: Literal["storage", "instance", "tmp", "temporary", "service"]
    source_path: str | None = None
    service: str | None = None


class Rule(Part):
    """What a location overrides for paths that match; None means as in the location."""

    allow: bool | None = None
    passthru: bool | str | None = None
    expires: int | str | None = None
    scripts: bool | None = None
    headers: dict[str, str] | None = None


class RequestBuffering(Part):
    enabled: bool = True
    max_request_size: str = "250m"


class Location(Part):
    """How the container's web server handles requests below one URL path."""

    root: str | None = None
    passthru: bool | str = False
    expires: int | str = -1
    allow: bool = True
    scripts: bool = True
    index: list[str] = []
    headers: dict[str, str] = {}
    rules: Annotated[dict[str, Rule], BeforeValidator(_empty)] = {}
    """The rules by regular expression, in the order of the file."""
    request_buffering: RequestBuffering = RequestBuffering()


class Commands(Part):
    pre_start: str | None = None
    start: str | None = None
    post_start: str | None = None
    stop: str | None = None


class Upstream(Part):
    socket_family: Literal["tcp", "unix"] = "tcp"
    protocol: str | None = None


class Web(BaseModel):
    """How the application is served. Old forms of keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    commands: Commands = Commands()
    upstream: Upstream = Upstream()
    locations: dict[str, Location] = {}


class Hooks(Part):
    build: str | None = None
    deploy: str | None = None
    post_deploy: str | None = None


class Source(Part):
    root: str | None = None
    operations: dict[str, Any] = {}


class Worker(BaseModel):
    """A worker container, which runs the same image as the web container."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    commands: Commands


class CronCommands(Part):
    start: str
    stop: str | None = None


class Cron(BaseModel):
    """A command that the platform runs on a schedule."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    spec: str
    commands: CronCommands
    timeout: int = 86400
    """The maximum run time, in seconds."""


class Application(Part):
    """One application container."""

    type: str = ""
    stack: Any = None
    source: Source = Source()
    container_profile: str | None = None
    resources: Any = None
    relationships: Annotated[dict[str, Any], BeforeValidator(_empty)] = {}
    mounts: Annotated[dict[str, Mount], BeforeValidator(_empty)] = {}
    web: Web = Web()
    workers: Annotated[dict[str, Worker], BeforeValidator(_empty)] = {}
    crons: Annotated[dict[str, Cron], BeforeValidator(_empty)] = {}
    hooks: Hooks = Hooks()
    variables: Annotated[dict[str, dict[str, Any]], BeforeValidator(_empty)] = {}
    build: Any = None
    dependencies: Any = None
    firewall: Any = None
    access: Any = None
    additional_hosts: Any = None
    operations: Any = None
    preflight: Any = None
    runtime: Any = None
    timezone: str | None = None

    @property
    def directory(self) -> str:
        """Return `source.root` without leading and trailing slashes; "" for the repository root."""
        return (self.source.root or "").strip("/")

    def endpoints(self) -> dict[str, tuple[str, str]]:
        """Return the service and the endpoint of each relationship, by its name."""
        found = {}
        for name, target in self.relationships.items():
            if isinstance(target, Mapping):
                found[name] = (str(target.get("service", name)), str(target.get("endpoint", "")))
            else:  # an empty value means the service of the same name
                service, _, endpoint = str(target or name).partition(":")
                found[name] = (service, endpoint)
        return found


class Service(BaseModel):
    """A service container, such as a database."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str

    @property
    def kind(self) -> str:
        return self.type.partition(":")[0]

    @property
    def version(self) -> str:
        return self.type.partition(":")[2]


class Cache(Part):
    """The router's HTTP cache."""

    enabled: bool = True
    default_ttl: int = 0
    cookies: list[str] = ["*"]
    headers: list[str] = ["Accept", "Accept-Language"]


class Redirect(Part):
    """A partial redirect, by path."""

    to: str
    regexp: bool = False
    prefix: bool = True
    append_suffix: bool = True
    code: Literal[301, 302, 307, 308] = 302
    expires: int | str | None = None


class Redirects(Part):
    paths: dict[str, Redirect] = {}
    expires: int | str = -1


class Route(BaseModel):
    """A URL that the router serves."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["upstream", "redirect", "proxy"] = "upstream"
    upstream: str | None = None
    to: str | None = None
    cache: Cache = Cache()
    redirects: Redirects = Redirects()
    primary: bool | None = None
    id: str | None = None

    @property
    def application(self) -> str:
        """Return the name of the upstream application; "" for a redirect."""
        return (self.upstream or "").partition(":")[0]


class Document(Part):
    """The whole file."""

    applications: dict[str, Application] = Field(min_length=1)
    services: Annotated[dict[str, Service], BeforeValidator(_empty)] = {}
    routes: Annotated[dict[str, Route], BeforeValidator(_empty)] = {}


@dataclass(frozen=True)
class Configuration:
    """The configuration as models, as raw YAML, and with the line of each key."""

    document: Document
    raw: Mapping[str, Any]
    lines: Mapping[Keys, int]

    @property
    def applications(self) -> Mapping[str, Application]:
        return self.document.applications

    @property
    def services(self) -> Mapping[str, Service]:
        return self.document.services

    @property
    def routes(self) -> Mapping[str, Route]:
        return self.document.routes

    def line(self, *keys: str) -> int:
        """Return the line of a key, or of its nearest ancestor that exists."""
        return line_of(self.lines, keys)

    def place(self, *keys: str) -> Place:
        """Return the file and line of a key, or of its nearest ancestor that exists."""
        return Place(CONFIG_FILE, self.line(*keys))


def read(directory: Path) -> Configuration:
    """Read the configuration of a checked-out tree.

    Raises:
        ConfigurationError: the file is missing, is not valid YAML, or does not match the models.
    """
    return parse(read_text(directory))


def read_text(directory: Path) -> str:
    """Return the text of the file; see `read`."""
    try:
        return (directory / CONFIG_FILE).read_text()
    except FileNotFoundError:
        raise ConfigurationError([(f"{CONFIG_FILE} is not in the commit", 0)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([(f"{CONFIG_FILE} cannot be read: {error}", 0)]) from None


def parse(text: str) -> Configuration:
    """Read the configuration from its text; see `read`."""
    return interpret(*load(text))


def load(text: str) -> tuple[dict[str, Any], dict[Keys, int]]:
    """Return the raw YAML, and the line of each key.

    Raises:
        ConfigurationError: the text is not valid YAML, or is not a mapping.
    """
    try:
        raw = yaml.safe_load(text)
        root = yaml.compose(text, yaml.SafeLoader)
        lines = dict(_lines(root, ())) if root else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = error.problem or error.context or "syntax error"
        raise ConfigurationError([(f"invalid YAML: {problem}", line)]) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date
        raise ConfigurationError([(f"invalid YAML: {error}", 0)]) from None
    except RecursionError:
        message = "invalid YAML: an alias refers to a value that contains it"
        raise ConfigurationError([(message, 0)]) from None
    if not isinstance(raw, dict):
        message = "the file must be a mapping with the key `applications`"
        raise ConfigurationError([(message, 1)])
    return raw, lines


def interpret(raw: dict[str, Any], lines: dict[Keys, int]) -> Configuration:
    """Validate what `load` returned, and return it as models.

    Raises:
        ConfigurationError: it does not match the models.
    """
    try:
        document = Document.model_validate(raw)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_input=False):
            keys = tuple(str(key) for key in item["loc"])
            message = item["msg"][0].lower() + item["msg"][1:]
            if item["type"] == "extra_forbidden":
                message = "unknown key"
            problems.append((f"{'.'.join(keys)}: {message}", line_of(lines, keys)))
        raise ConfigurationError(problems) from None
    return Configuration(document, raw, lines)


def _lines(node: yaml.Node, keys: Keys) -> Iterator[tuple[Keys, int]]:
    """Yield the line of each key and list item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*keys, str(key.value))
            yield below, key.start_mark.line + 1
            yield from _lines(value, below)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            below = (*keys, str(number))
            yield below, value.start_mark.line + 1
            yield from _lines(value, below)


def line_of(lines: Mapping[Keys, int], keys: Keys) -> int:
    """Return the line of a key, or of its nearest ancestor that exists."""
    for length in range(len(keys), 0, -1):
        if keys[:length] in lines:
            return lines[keys[:length]]
    return 1
