"""Read the rehearsal's settings from `[tool.rehearsal]` in `pyproject.toml`."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ProjectError(Exception):
    """The section is invalid; the message is one sentence."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(Part):
    """A request of a visit; `{n}` is replaced with a random word, the same in a whole visit."""

    path: str
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    form: dict[str, str] = {}
    status: int = 200
    """The expected status code."""
    row: str | None = None
    """An SQL query that must return a true value after the request has succeeded.

    It detects writes that were acknowledged and then lost.
    """


class Visit(Part):
    """A sequence of requests that share cookies."""

    share: float = Field(gt=0)
    """The weight of this visit relative to the other visits."""
    requests: list[Request] = Field(min_length=1)


class Compatibility(Part):
    """How the tests of the previous release run on the schema of this one; see compatibility.py."""

    command: str = Field(default="python -m pytest -q", min_length=1)
    """The command that runs the tests; it must use pytest's exit codes."""
    migrations: str = Field(default="alembic/versions", min_length=1)
    """The directory of the migrations."""
    configuration: str = Field(default="alembic.ini", min_length=1)
    """Alembic's configuration file."""
    variable: str = Field(default="TEST_MIGRATIONS", pattern="^[A-Z_][A-Z0-9_]*$")
    """The variable that tells `conftest.py` the path of `configuration`, to create the schema."""
    built: list[str] = []
    """Untracked files that the application needs, such as build output; linked from this tree."""
    guide: str | None = None
    """A document to refer to if the previous release does not work on the schema."""


class Connections(Part):
    """The database connections of each process with a connection pool, at most.

    Without this section, the most that were measured count.
    """

    pool: int = Field(ge=1)
    """The size of its pool."""
    others: int = Field(default=0, ge=0)
    """The number of its connections outside the pool, such as those that LISTEN."""
    variable: str | None = Field(default=None, pattern="^[A-Z_][A-Z0-9_]*$")
    """The variable that sets the size of the pool, if there is one."""


class Project(Part):
    """The settings in `[tool.rehearsal]`."""

    application: str | None = None
    """The application to rehearse; required if the configuration has several."""
    pages: list[str] = []
    """Pages that must respond with 200 without a login; the first page's assets are checked.

    By default the URL of each of the application's routes must respond without a server error.
    """
    ready: str | None = None
    """The readiness URL: responds with 200 only while the application can serve requests."""
    compatibility: Compatibility = Compatibility()
    connections: Connections | None = None
    rate: float = Field(default=220, gt=0)
    """The load, in requests per second."""
    load: list[Visit] = []
    """The visits of the load; by default one visit per page."""


def read(directory: Path) -> Project:
    """Read the section; every key has a default.

    Raises:
        ProjectError: the section is invalid; the message names the key.
    """
    try:
        document = tomllib.loads((directory / "pyproject.toml").read_text())
        section = document.get("tool", {}).get("rehearsal", {})
    except FileNotFoundError:
        return Project()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ProjectError(f"pyproject.toml is not valid TOML: {error}") from None
    try:
        return Project.model_validate(section)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in ("tool.rehearsal", *first["loc"]))
        raise ProjectError(f"pyproject.toml, {key}: {first['msg']}") from None
