"""Reads `.upsun/config.yaml`, and remembers in which line everything stands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

CONFIG_FILE = ".upsun/config.yaml"

Keys = tuple[str, ...]  # from the top of the document to a value


class ConfigurationError(Exception):
    """The configuration cannot be read; each problem is a sentence with its line, from 1."""

    def __init__(self, problems: list[tuple[str, int]]) -> None:
        super().__init__("; ".join(message for message, _ in problems))
        self.problems = problems


class Part(BaseModel):
    """A mapping of the file. A key that the platform does not know is an error, as it is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _empty(value: Any) -> Any:
    return {} if value is None else value


class Mount(Part):
    """A directory of the application that can be written to at runtime."""

    source: Literal["storage", "instance", "tmp", "temporary", "service"]
    source_path: str | None = None
    service: str | None = None


class Rule(Part):
    """What a location does otherwise with paths that match; None: as the location."""

    allow: bool | None = None
    passthru: bool | str | None = None
    expires: int | str | None = None
    scripts: bool | None = None
    headers: dict[str, str] | None = None


class RequestBuffering(Part):
    enabled: bool = True
    max_request_size: str = "250m"


class Location(Part):
    """What the container's web server does below one URL path."""

    root: str | None = None
    passthru: bool | str = False
    expires: int | str = -1
    allow: bool = True
    scripts: bool = True
    index: list[str] = []
    headers: dict[str, str] = {}
    rules: Annotated[dict[str, Rule], BeforeValidator(_empty)] = {}
    """By regular expression, in the order of the file."""
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
    """How the application is served; old forms of keys are ignored."""

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
    """A container beside the web container, of the same image."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    commands: Commands


class CronCommands(Part):
    start: str
    stop: str | None = None


class Cron(BaseModel):
    """A command that the platform runs at times."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    spec: str
    commands: CronCommands
    timeout: int = 86400
    """Seconds."""


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
        """Return where it lies in the repository, without slashes around; "" for the top."""
        return (self.source.root or "").strip("/")

    def endpoints(self) -> dict[str, tuple[str, str]]:
        """Return the service and the endpoint that each relationship leads to."""
        found = {}
        for name, target in self.relationships.items():
            if isinstance(target, Mapping):
                found[name] = (str(target.get("service", name)), str(target.get("endpoint", "")))
            else:  # nothing at all: a service of the same name
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
    """How the router keeps answers."""

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
    """A URL that the router answers."""

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
        """Return the name of the application it leads to; "" for a redirect."""
        return (self.upstream or "").partition(":")[0]


class Document(Part):
    """All of the file."""

    applications: dict[str, Application] = Field(min_length=1)
    services: Annotated[dict[str, Service], BeforeValidator(_empty)] = {}
    routes: Annotated[dict[str, Route], BeforeValidator(_empty)] = {}


@dataclass(frozen=True)
class Configuration:
    """The file as it is used, as it is written, and where everything stands in it."""

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
        """Return the line of a key, or of the nearest one around it that is there."""
        return line_of(self.lines, keys)


def read(directory: Path) -> Configuration:
    """Read the configuration of a checked-out tree.

    Raises:
        ConfigurationError: it is missing, no YAML, or of another form than the platform takes.
    """
    return parse(read_text(directory))


def read_text(directory: Path) -> str:
    """Return the text of the file; see `read`."""
    try:
        return (directory / CONFIG_FILE).read_text()
    except FileNotFoundError:
        raise ConfigurationError([("it is not in the commit", 0)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([(f"it cannot be read: {error}", 0)]) from None


def parse(text: str) -> Configuration:
    """Read the configuration from its text; see `read`."""
    return interpret(*load(text))


def load(text: str) -> tuple[dict[str, Any], dict[Keys, int]]:
    """Return the file as it is written, and the line of each key.

    Raises:
        ConfigurationError: it is no YAML, or no mapping.
    """
    try:
        raw = yaml.safe_load(text)
        root = yaml.compose(text, yaml.SafeLoader)
        lines = dict(_lines(root, ())) if root else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = error.problem or error.context or "it cannot be read"
        raise ConfigurationError([(f"this is no YAML: {problem}", line)]) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise ConfigurationError([(f"this is no YAML: {error}", 0)]) from None
    except RecursionError:
        raise ConfigurationError([("a part of the file contains itself", 0)]) from None
    if not isinstance(raw, dict):
        raise ConfigurationError([("the file holds no keys", 1)])
    return raw, lines


def interpret(raw: dict[str, Any], lines: dict[Keys, int]) -> Configuration:
    """Return what `load` found, in the form that the platform takes.

    Raises:
        ConfigurationError: it has another one.
    """
    try:
        document = Document.model_validate(raw)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_input=False):
            keys = tuple(str(key) for key in item["loc"])
            message = item["msg"][0].lower() + item["msg"][1:]
            if item["type"] == "extra_forbidden":
                message = "the platform knows no such key here"
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
    """Return the line of a key, or of the nearest one around it that is there."""
    for length in range(len(keys), 0, -1):
        if keys[:length] in lines:
            return lines[keys[:length]]
    return 1
