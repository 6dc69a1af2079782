"""Describe an application as data, for `quart inspect`.

The attribute names are the keys of the JSON document. Readers depend on them: add keys, but do not
rename or remove one without raising `VERSION`. docs/development.md explains them.
"""

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from quart import Quart
from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapper
from werkzeug.routing import Rule

from quart_upsun.database import Base, load_models
from quart_upsun.database.anonymization import EMPTIED, Rules
from quart_upsun.database.statements import DIALECT
from quart_upsun.jobs.queue import Schedule, Task
from quart_upsun.policy import RateLimit, policy_of
from quart_upsun.settings import Settings

if TYPE_CHECKING:
    from quart_upsun.extension import ToolkitState

VERSION = 1
AUTOMATIC_METHODS = {"HEAD", "OPTIONS"}
# Values that contain a secret, but are not a `SecretStr`.
SECRET_SETTINGS = {"database_url", "database_direct_url", "database_replica_url"}


@dataclass(frozen=True)
class Feature:
    """An entry of the application's list `FEATURES`."""

    name: str
    module: str
    summary: str
    """The first line of the module's docstring."""


@dataclass(frozen=True)
class Limit:
    """A rate limit: `count` requests in `seconds`."""

    name: str
    count: int
    seconds: int
    is_partial: bool
    """Whether it counts only some of the requests."""


@dataclass(frozen=True)
class Route:
    """A URL rule and the policy of its view. None means that the view does not declare it."""

    rule: str
    methods: list[str]
    """Without HEAD and OPTIONS, which Quart adds."""
    endpoint: str
    view: str
    """The module and name of the function."""
    access: str | None
    """`public`, `api`, or a rule of the application, such as `login`."""
    scope: str | None
    """The scope that an access token needs."""
    cache: str | None
    """The `Cache-Control` header of a successful response."""
    limit: Limit | None
    no_limit_reason: str | None
    audit_events: list[str]
    no_audit_reason: str | None


@dataclass(frozen=True)
class Sanitizing:
    """How `quart sanitize` anonymizes a column."""

    kind: str
    """`kept`, `replaced` or `ended`."""
    expression: str | None
    """The new value in SQL."""


@dataclass(frozen=True)
class ModelColumn:
    """A column of a table."""

    name: str
    type: str
    """The type in PostgreSQL."""
    is_nullable: bool
    is_primary_key: bool
    references: list[str]
    """The columns that foreign keys refer to, as `table.column`."""
    sanitizing: Sanitizing | None
    """None if the rows are deleted, or if there is no rule."""


@dataclass(frozen=True)
class Model:
    """A model and its table."""

    name: str
    module: str
    table: str
    is_emptied: bool
    """Whether `quart sanitize` deletes all rows."""
    columns: list[ModelColumn]


@dataclass(frozen=True)
class BackgroundTask:
    """A registered background task."""

    name: str
    function: str
    """The module and name of the function."""
    timeout_seconds: float
    backoff_seconds: list[float]
    """The delays between attempts."""
    priority: int
    max_concurrent: int
    """The maximum number of running jobs; 0 for no limit."""


@dataclass(frozen=True)
class PeriodicTask:
    """A schedule of a task."""

    task: str
    cron: str
    """Minute, hour, day of month, month, day of week, in UTC."""


@dataclass(frozen=True)
class Setting:
    """A setting. Its value is never shown."""

    name: str
    """The attribute of the settings object."""
    variable: str
    """The environment variable."""
    type: str
    is_required: bool
    default: Any
    """None if it is required or secret."""
    is_secret: bool
    description: str


@dataclass(frozen=True)
class Description:
    """An application, as its code declares it."""

    version: int
    """The version of this format."""
    application: str
    """The application's package."""
    release: dict[str, Any] | None
    """The table `[tool.quart-upsun]` of pyproject.toml."""
    features: list[Feature]
    routes: list[Route]
    models: list[Model]
    tasks: list[BackgroundTask]
    schedules: list[PeriodicTask]
    settings: list[Setting]


def describe(app: Quart) -> Description:
    """Describe an application that the toolkit has been added to.

    Raises:
        ValueError: pyproject.toml is not valid TOML.
    """
    state: ToolkitState = app.extensions["quart_upsun"]
    load_all_models(app)
    module = sys.modules[app.import_name]
    return Description(
        version=VERSION,
        application=app.import_name,
        release=read_release(state.settings.root),
        features=[_feature(each) for each in getattr(module, "FEATURES", ())],
        routes=[
            describe_route(app, rule)
            for rule in sorted(app.url_map.iter_rules(), key=lambda each: each.rule)
        ],
        models=list(_models()),
        tasks=[_task(each) for _, each in sorted(state.jobs.tasks.items())],
        schedules=[_schedule(each) for each in state.jobs.schedules],
        settings=list(_settings(type(state.settings))),
    )


def read_release(root: Path) -> dict[str, Any] | None:
    """Return the table `[tool.quart-upsun]` of pyproject.toml; None if there is none.

    Raises:
        ValueError: the file is not valid TOML.
    """
    path = root / "pyproject.toml"
    if not path.is_file():
        return None
    release: dict[str, Any] | None = (
        tomllib.loads(path.read_text()).get("tool", {}).get("quart-upsun")
    )
    return release


def describe_route(app: Quart, rule: Rule) -> Route:
    """Describe a URL rule of an application."""
    view = app.view_functions.get(rule.endpoint)
    policy = policy_of(view)
    return Route(
        rule=rule.rule,
        methods=sorted((rule.methods or set()) - AUTOMATIC_METHODS),
        endpoint=rule.endpoint,
        view=_name(view),
        access=policy.access,
        scope=policy.scope.name if policy.scope else None,
        cache=policy.cache_control,
        limit=_limit(policy.limit, policy.is_limit_partial) if policy.limit else None,
        no_limit_reason=policy.no_limit_reason,
        audit_events=[str(each) for each in policy.audit_events],
        no_audit_reason=policy.no_audit_reason,
    )


def _limit(limit: RateLimit, is_partial: bool) -> Limit:
    return Limit(limit.name, limit.count, limit.seconds, is_partial)


def _feature(module: ModuleType) -> Feature:
    name = module.__name__.rpartition(".")[2]
    return Feature(name, module.__name__, (module.__doc__ or "").strip().partition("\n")[0])


def _name(function: Any) -> str:
    if function is None:  # a rule without a view, for instance of `build_only`
        return ""
    return f"{function.__module__}.{function.__qualname__}"


def load_all_models(app: Quart) -> None:
    """Import the models of the toolkit, and those of the application if it is a package."""
    is_package = hasattr(sys.modules[app.import_name], "__path__")
    load_models(*([app.import_name] if is_package else []))


def _models() -> Iterator[Model]:
    for mapper in sorted(Base.registry.mappers, key=lambda each: str(each.local_table)):
        yield _model(mapper)


def _model(mapper: Mapper[Any]) -> Model:
    table = cast(Table, mapper.local_table)
    rules: Rules = getattr(mapper.class_, "__sanitize__", {})
    return Model(
        name=mapper.class_.__name__,
        module=mapper.class_.__module__,
        table=table.name,
        is_emptied=rules == EMPTIED,
        columns=[_column(each, rules) for each in table.columns],
    )


def _column(column: Column[Any], rules: Rules) -> ModelColumn:
    rule = rules.get(column.name) if isinstance(rules, dict) else None
    return ModelColumn(
        name=column.name,
        type=column.type.compile(dialect=DIALECT),
        is_nullable=bool(column.nullable),
        is_primary_key=column.primary_key,
        references=sorted(each.target_fullname for each in column.foreign_keys),
        sanitizing=Sanitizing(rule.kind, rule.expression) if rule else None,
    )


def _task(task: Task) -> BackgroundTask:
    return BackgroundTask(
        name=task.name,
        function=_name(task.run),
        timeout_seconds=task.timeout,
        backoff_seconds=list(task.backoff_seconds),
        priority=task.priority,
        max_concurrent=task.max_concurrent,
    )


def _schedule(schedule: Schedule) -> PeriodicTask:
    return PeriodicTask(schedule.task.name, schedule.cron)


def _settings(kind: type[Settings]) -> Iterator[Setting]:
    for name, field in sorted(kind.model_fields.items()):
        if not field.exclude:
            yield _setting(name, field)


def _setting(name: str, field: FieldInfo) -> Setting:
    is_secret = name in SECRET_SETTINGS or field.annotation is SecretStr
    shows_default = not is_secret and not field.is_required()
    return Setting(
        name=name,
        variable=name.upper(),
        type=_type_name(field.annotation),
        is_required=field.is_required(),
        default=field.default if shows_default else None,
        is_secret=is_secret,
        description=field.description or "",
    )


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
