"""Read the YAML files in `.upsun/` into models, and record the place of each key."""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rehearsal import fixed
from rehearsal.findings import Finding, Place, Severity
from rehearsal.knowledge import OLDER_MOUNT
from rehearsal.shapes import Keys, Unread

DIRECTORY = ".upsun"
CONFIG_FILE = ".upsun/config.yaml"  # the usual file
SECTIONS = ("applications", "services", "routes", "tasks")
MAX_INCLUDES = 10  # files that include each other
STAGE = "validate"
REJECTED = "the platform rejects the push"


class ConfigurationError(Exception):
    """The configuration cannot be used; `findings` says why."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("; ".join(finding.message for finding in findings))
        self.findings = findings


class Part(BaseModel):
    """A mapping of the file. An empty value means the default.

    Unknown keys and wrong values are errors of the validation; see `knowledge.py`. The models
    contain the rest.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): member for key, member in value.items() if member is not None}
        return value


OLDER_SOURCES = {"local": "instance", "shared": "storage"}


class Mount(Part):
    """A directory that is writable at runtime."""

    source: Literal["storage", "instance", "tmp", "temporary", "service"]
    source_path: str | None = None
    service: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_older_forms(cls, value: Any) -> Any:
        """Accept `shared:files/PATH` and the sources `local` and `shared`."""
        if isinstance(value, str) and (match := re.fullmatch(OLDER_MOUNT, value)):
            value = {"source": match["source"], "source_path": match["path"] or ""}
        if isinstance(value, Mapping):
            source = value.get("source")
            return {**value, "source": OLDER_SOURCES.get(str(source), source)}
        return value


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
    rules: dict[str, Rule] = {}
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


class Web(Part):
    """How the application is served."""

    commands: Commands = Commands()
    upstream: Upstream = Upstream()
    locations: dict[str, Location] = {}


class Hooks(Part):
    build: str | None = None
    deploy: str | None = None
    post_deploy: str | None = None


class SourceOperation(Part):
    """A command that commits changes to the repository."""

    command: str


class Source(Part):
    root: str | None = None
    operations: dict[str, SourceOperation] = {}


class Worker(Part):
    """A worker container, which runs the same image as the web container."""

    commands: Commands
    container_profile: str | None = None


class CronCommands(Part):
    start: str
    stop: str | None = None


class Cron(Part):
    """A command that the platform runs on a schedule."""

    spec: str
    commands: CronCommands
    timeout: int = 86400
    """The maximum run time, in seconds."""

    @model_validator(mode="before")
    @classmethod
    def _from_cmd(cls, value: Any) -> Any:
        """Accept the old form `cmd: …` of `commands: {start: …}`."""
        if isinstance(value, Mapping) and "cmd" in value and not value.get("commands"):
            return {**value, "commands": {"start": value["cmd"]}}
        return value


class Operation(Part):
    """A command that users of the platform run when they need it, like a cron."""

    commands: CronCommands


class Application(Part):
    """One application container."""

    type: str = ""
    stack: Any = None
    source: Source = Source()
    container_profile: str | None = None
    resources: Any = None
    relationships: dict[str, Any] = {}
    mounts: dict[str, Mount] = {}
    web: Web = Web()
    workers: dict[str, Worker] = {}
    crons: dict[str, Cron] = {}
    hooks: Hooks = Hooks()
    variables: dict[str, dict[str, Any]] = {}
    build: Any = None
    dependencies: Any = None
    firewall: Any = None
    access: Any = None
    additional_hosts: Any = None
    operations: dict[str, Operation] = {}
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


class Run(Part):
    """What a task does."""

    command: str
    timeout: int = 86400
    """The maximum run time, in seconds."""


class Task(Application):
    """A container that runs a command to its end, with an image of its own."""

    run: Run


class Service(Part):
    """A service container, such as a database."""

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


class Route(Part):
    """A URL that the router serves."""

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
    """The whole configuration."""

    applications: dict[str, Application] = Field(min_length=1)
    services: dict[str, Service] = {}
    routes: dict[str, Route] = {}
    tasks: dict[str, Task] = {}


class Include(Unread):
    """An `!include` or `!archive` tag."""

    def __init__(self, tag: str, kind: str, path: str) -> None:
        self.tag, self.kind, self.path = tag, kind, path


@dataclass
class Loaded:
    """The files as they are, merged."""

    raw: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, Place] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    """The lines of each file."""
    findings: list[Finding] = field(default_factory=list)
    """Files and values that could not be read, and duplicate keys."""

    def place(self, *keys: str) -> Place:
        """Return the place of a key, or of its nearest ancestor that exists."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.places:
                return self.places[keys[:length]]
        return Place(next(iter(self.texts), CONFIG_FILE), 1)


@dataclass(frozen=True)
class Configuration:
    """The configuration as models, and as it is in the files."""

    document: Document
    loaded: Loaded

    @property
    def applications(self) -> Mapping[str, Application]:
        return self.document.applications

    @property
    def services(self) -> Mapping[str, Service]:
        return self.document.services

    @property
    def routes(self) -> Mapping[str, Route]:
        return self.document.routes

    @property
    def raw(self) -> Mapping[str, Any]:
        """Return the YAML, as it is in the files."""
        return self.loaded.raw

    def place(self, *keys: str) -> Place:
        """Return the file and line of a key, or of its nearest ancestor that exists."""
        return self.loaded.place(*keys)

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.document.tasks

    def with_tasks(self, names: Iterable[str]) -> "Configuration":
        """Return the configuration with some tasks as applications, to build and run them."""
        tasks = {name: self.tasks[name] for name in names}
        if not tasks:
            return self
        document = self.document.model_copy(update={"applications": {**self.applications, **tasks}})
        described = {name: self.raw["tasks"][name] for name in tasks}
        applications = {**self.raw["applications"], **described}
        places = {
            ("applications", *keys[1:]): place
            for keys, place in self.loaded.places.items()
            if keys[0] == "tasks" and keys[1:2] and keys[1] in tasks
        }
        loaded = replace(
            self.loaded,
            raw={**self.raw, "applications": applications},
            places={**self.loaded.places, **places},
        )
        return Configuration(document, loaded)

    @property
    def has_several_applications(self) -> bool:
        return sum(not isinstance(each, Task) for each in self.applications.values()) > 1

    def names(self, section: str) -> set[str]:
        """Return the names of a section's members, including those that could not be read."""
        members = self.raw.get(section)
        return set(map(str, members)) if isinstance(members, Mapping) else set()


def read(directory: Path) -> Configuration:
    """Read the configuration of a checked-out tree.

    Raises:
        ConfigurationError: there is no file, or no application.
    """
    return interpret(load(directory))


def parse(text: str) -> Configuration:
    """Read the configuration from the text of `.upsun/config.yaml`; see `read`."""
    loaded = Loaded()
    value = _Reader(loaded, CONFIG_FILE).parse(text)
    loaded.raw = value if isinstance(value, dict) else {}
    return interpret(loaded)


def config_files(directory: Path) -> list[Path]:
    """Return the files that the platform merges, in the order of their names."""
    return sorted(path for path in (directory / DIRECTORY).glob("*.yaml") if path.is_file())


def load(directory: Path, files: list[Path] | None = None, *, complete: bool = True) -> Loaded:
    """Read and merge the files of a project.

    Args:
        directory: the directory of the project, which included files are in.
        files: the files; by default all YAML files in `.upsun/`.
        complete: whether the directory has all files of the project, so that an included file that
            is missing is an error.
    """
    loaded = Loaded()
    if files is None:
        files = config_files(directory)
        if not files and fixed.is_fixed(directory):
            _load_fixed(loaded, directory)
            _Includes(loaded, directory, complete=complete).resolve()
            return loaded
    if not files:
        message = f"{CONFIG_FILE} is not in the commit" if complete else "there is no YAML file"
        loaded.findings.append(_fault(message, Place(CONFIG_FILE), f"add {CONFIG_FILE}"))
    for path in files:
        name = path.relative_to(directory).as_posix()
        value = _Reader(loaded, name).read(path)
        if isinstance(value, dict):
            _merge(loaded, value, name)
        elif value is not None:
            message = "the file must be a mapping with the key `applications`"
            loaded.findings.append(_fault(message, Place(name, 1)))
    _Includes(loaded, directory, complete=complete).resolve()
    return loaded


def _load_fixed(loaded: Loaded, directory: Path) -> None:
    """Read the files of a project on Upsun Fixed as if they were those of Upsun Flex."""
    applications: dict[str, Any] = {}
    for path in fixed.application_files(directory):
        file = path.relative_to(directory)
        name = _name_of(_Reader(Loaded(), file.as_posix()).read(path))
        value = _Reader(loaded, file.as_posix(), ("applications", name)).read(path)
        if isinstance(value, dict):
            root = file.parent.as_posix().removeprefix(".")
            applications[name] = fixed.application(value, root)
    path = directory / fixed.APPLICATIONS
    if path.is_file():  # a mapping, or a list of applications with names
        value = _Reader(loaded, fixed.APPLICATIONS, ("applications",)).read(path)
        items = value.items() if isinstance(value, dict) else enumerate(value or [])
        for key, described in items:
            name = str(key) if isinstance(value, dict) else _name_of(described)
            if isinstance(described, dict):
                applications[name] = fixed.application(described, "")
                for keys, place in list(loaded.places.items()):
                    if keys[:2] == ("applications", str(key)):
                        loaded.places["applications", name, *keys[2:]] = place
    loaded.raw["applications"] = applications
    for section, file_name in fixed.SECTIONS.items():
        path = directory / file_name
        if path.is_file():
            value = _Reader(loaded, file_name, (section,)).read(path)
            if isinstance(value, dict) and section == "services":
                value = {name: fixed.service(described) for name, described in value.items()}
            loaded.raw[section] = value
    place = Place(next(iter(loaded.texts), fixed.APPLICATION), 1)
    if not applications:
        message = f"{CONFIG_FILE} is not in the commit"
        loaded.findings.append(_fault(message, place, f"add {CONFIG_FILE}"))
    loaded.findings.append(
        Finding(
            STAGE,
            f"there is no {CONFIG_FILE}, so the files of Upsun Fixed are rehearsed",
            "Upsun Flex does not read them",
            f"to deploy to Upsun Flex, convert them to {CONFIG_FILE}",
            Severity.WARNING,
            place.file,
            place.line,
        )
    )


def _name_of(described: object) -> str:
    """Return the name of an application on Upsun Fixed."""
    name = described.get("name") if isinstance(described, dict) else None
    return str(name or "app")


def interpret(loaded: Loaded) -> Configuration:
    """Return the configuration as models, without the parts that do not fit them.

    The validation reports those parts.

    Raises:
        ConfigurationError: there is no application.
    """
    raw = readable(loaded.raw)
    while True:
        try:
            return Configuration(_with_default_route(Document.model_validate(raw)), loaded)
        except ValidationError as error:
            removed = [_remove(raw, item["loc"]) for item in error.errors(include_url=False)]
            if not any(removed):
                findings = [finding for finding in loaded.findings if finding.consequence]
                message = "there is no application"
                raise ConfigurationError(
                    findings or [_fault(message, loaded.place("applications"))]
                ) from None


def _with_default_route(document: Document) -> Document:
    """Return the configuration with the route that the platform adds for a single application."""
    served = [name for name, each in document.applications.items() if each.web != Web()]
    if document.routes or len(document.applications) > 1 or not served:
        return document
    route = Route(type="upstream", upstream=f"{served[0]}:http")
    return document.model_copy(update={"routes": {"https://{default}/": route}})


class _Loader(yaml.SafeLoader):
    """A YAML loader that knows the tags of the platform."""


def _include(loader: yaml.SafeLoader, node: yaml.Node) -> Include:
    if isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node)
        return Include("!include", str(value.get("type", "yaml")), str(value.get("path", "")))
    return Include("!include", "yaml", str(node.value))


_Loader.add_constructor("!include", _include)
_Loader.add_constructor("!archive", lambda _, node: Include("!archive", "archive", str(node.value)))


class _Reader:
    """Reads one YAML file, and records its problems."""

    def __init__(self, loaded: Loaded, name: str, keys: Keys = ()) -> None:
        self.loaded, self.name, self.keys = loaded, name, keys

    def read(self, path: Path) -> Any:
        """Return the file's value; None if it is empty or cannot be read."""
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            self._add(f"{self.name} cannot be read: {error}", 0)
            return None
        return self.parse(text)

    def parse(self, text: str) -> Any:
        """Return the value of a file's text; see `read`."""
        self.loaded.texts[self.name] = text.splitlines()
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            self._check_duplicates(node, set())
            value = loader.construct_document(node)
            self.loaded.places.update(self._places(node, self.keys))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            self._add(f"invalid YAML: {error.problem or error.context or 'syntax error'}", line)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date
            self._add(f"invalid YAML: {error}", 0)
        except RecursionError:
            self._add("invalid YAML: an alias refers to a value that contains it", 0)
        else:
            return value
        finally:
            loader.dispose()
        return None

    def _add(self, message: str, line: int, fix: str = "correct the file") -> None:
        self.loaded.findings.append(_fault(message, Place(self.name, line), fix))

    def _check_duplicates(self, node: yaml.Node, seen: set[int]) -> None:
        if id(node) in seen:  # an alias
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines and name != "<<":
                    self._add(
                        f"the key `{name}` is defined twice, the first time in line {lines[name]}",
                        line,
                        "remove or rename one of them",
                    )
                lines.setdefault(name, line)
                self._check_duplicates(value, seen)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                self._check_duplicates(value, seen)

    def _places(self, node: yaml.Node, keys: Keys) -> Iterator[tuple[Keys, Place]]:
        """Yield the place of each key and list item."""
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = (*keys, str(key.value))
                yield below, Place(self.name, key.start_mark.line + 1)
                yield from self._places(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                below = (*keys, str(number))
                yield below, Place(self.name, value.start_mark.line + 1)
                yield from self._places(value, below)


class _Includes:
    """Replaces tags with the content of the files that they name."""

    def __init__(self, loaded: Loaded, directory: Path, *, complete: bool) -> None:
        self.loaded, self.directory, self.complete = loaded, directory, complete

    def resolve(self) -> None:
        places = [self.directory / DIRECTORY, self.directory]
        self.loaded.raw = self._walk(self.loaded.raw, (), places, 0)

    def _walk(self, value: Any, keys: Keys, places: list[Path], depth: int) -> Any:
        if isinstance(value, Include):
            return self._content(value, keys, places, depth)
        if isinstance(value, dict):
            if len(keys) == 2 and keys[0] == "applications":
                places = [self._application_directory(value), *places]
            return {k: self._walk(v, (*keys, str(k)), places, depth) for k, v in value.items()}
        if isinstance(value, list):
            return [self._walk(v, (*keys, str(n)), places, depth) for n, v in enumerate(value)]
        return value

    def _application_directory(self, application: dict[str, Any]) -> Path:
        source = application.get("source")
        root = source.get("root") if isinstance(source, dict) else None
        return self.directory / (root.strip("/") if isinstance(root, str) else "")

    def _content(self, include: Include, keys: Keys, places: list[Path], depth: int) -> Any:
        """Return the content of a file; the tag itself if it cannot be read."""
        root = self.directory.resolve()
        candidates = [(place / include.path.lstrip("/")).resolve() for place in places]
        found = [path for path in candidates if path.is_relative_to(root) and path.exists()]
        if not include.path or not found or depth > MAX_INCLUDES:
            self._missing(include, keys)
            return include
        path = found[0]
        if path.is_dir() or include.kind == "archive":
            return include  # the platform packs the directory; nothing here reads it
        if include.kind == "yaml":
            name = path.relative_to(root).as_posix()
            value = _Reader(self.loaded, name, keys).read(path)
            return self._walk(value, keys, [*places, path.parent], depth + 1)
        try:
            content = path.read_bytes()
            text = base64.b64encode(content) if include.kind == "binary" else content
            return text.decode()
        except (OSError, UnicodeDecodeError):
            self._missing(include, keys)
            return include

    def _missing(self, include: Include, keys: Keys) -> None:
        message = f"{'.'.join(keys)} includes {include.path or 'no file'}, which "
        place = self.loaded.place(*keys)
        if self.complete:
            finding = _fault(f"{message}cannot be read", place, "correct the path, or add the file")
        else:
            finding = Finding(
                STAGE,
                f"{message}is not here, so its content was not checked",
                fix="validate the directory of the project",
                severity=Severity.NOT_REHEARSED,
                file=place.file,
                line=place.line,
            )
        self.loaded.findings.append(finding)


def _merge(loaded: Loaded, value: dict[str, Any], name: str) -> None:
    """Add the value of a file; report names that another file has defined."""
    for section, members in value.items():
        present = loaded.raw.get(section)
        if not isinstance(present, dict) or not isinstance(members, dict):
            if present is None:
                loaded.raw[section] = members
            elif members is not None:
                message = f"`{section}` is defined in several files and is not a mapping"
                loaded.findings.append(_fault(message, loaded.place(str(section))))
            continue
        for key in members:
            if key in present:
                place = loaded.place(str(section), str(key))
                message = f"{section}.{key} is defined in several files"
                loaded.findings.append(_fault(message, place, "remove or rename one of them"))
        loaded.raw[section] = present | members


def _fault(message: str, place: Place, fix: str = "correct the file") -> Finding:
    return Finding(STAGE, message, REJECTED, fix, Severity.ERROR, place.file, place.line)


def readable(value: Any) -> Any:
    """Return a copy without the values that could not be read, and with text as keys."""
    if isinstance(value, dict):
        return {str(k): readable(v) for k, v in value.items() if not isinstance(v, Unread)}
    if isinstance(value, list):
        return [readable(item) for item in value if not isinstance(item, Unread)]
    return value


def _remove(raw: Any, location: tuple[int | str, ...]) -> bool:
    """Remove the value at a location, or its nearest ancestor that exists."""
    parent: Any = None
    key: Any = None
    value = raw
    for part in location:
        if isinstance(value, dict) and str(part) in value:
            parent, key = value, str(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            parent, key = value, part
        else:
            break
        value = parent[key]
    if parent is None:
        return False
    del parent[key]
    return True
