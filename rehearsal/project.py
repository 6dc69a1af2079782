"""What a rehearsal needs to know of the application: `[tool.rehearsal]` in `pyproject.toml`."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ProjectError(Exception):
    """The section is wrong; the message is one sentence."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(Part):
    """A request of a visit; `{n}` stands for a word that is another one in each visit."""

    path: str
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    form: dict[str, str] = {}
    status: int = 200
    """What it must be answered with."""
    row: str | None = None
    """SQL that must find a row once the request was answered with `status`."""


class Visit(Part):
    """Requests one after the other, with the cookies of the earlier ones."""

    share: float = Field(gt=0)
    """How many of all visits, in relation to the others' shares."""
    requests: list[Request] = Field(min_length=1)


class Compatibility(Part):
    """How the tests of the previous release run on the schema of this one; see compatibility.py."""

    command: str = Field(default="python -m pytest -q", min_length=1)
    """Runs the tests, with pytest's exit codes."""
    migrations: str = Field(default="alembic/versions", min_length=1)
    """The folder of the migrations."""
    configuration: str = Field(default="alembic.ini", min_length=1)
    """Alembic's configuration file, which names that folder."""
    variable: str = Field(default="TEST_MIGRATIONS", pattern="^[A-Z_][A-Z0-9_]*$")
    """Tells a `conftest.py` the path of `configuration`, whose migrations make the schema."""
    built: list[str] = []
    """What Git does not have and the application needs to start: taken from the working tree."""
    guide: str | None = None
    """A document to name when the release does not work on the schema."""


class Project(Part):
    """What to ask the application."""

    application: str | None = None
    """The name of the application to rehearse; needed only where there are several."""
    pages: list[str] = Field(default=["/"], min_length=1)
    """Answered with 200 to anybody; the first one's assets are looked at."""
    ready: str | None = None
    """Answered with 200 only while the application can serve on the schema it finds."""
    compatibility: Compatibility = Compatibility()
    rate: float = Field(default=220, gt=0)
    """Requests a second of the load."""
    load: list[Visit] = []
    """By default, the pages."""

    def visits(self) -> list[Visit]:
        return self.load or [Visit(share=1, requests=[Request(path=page)]) for page in self.pages]


def read(directory: Path) -> Project:
    """Read the section; all of it has defaults.

    Raises:
        ProjectError: one sentence that names the key.
    """
    try:
        document = tomllib.loads((directory / "pyproject.toml").read_text())
        section = document.get("tool", {}).get("rehearsal", {})
    except FileNotFoundError:
        return Project()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ProjectError(f"pyproject.toml is no TOML: {error}") from None
    try:
        return Project.model_validate(section)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in ("tool.rehearsal", *first["loc"]))
        raise ProjectError(f"pyproject.toml, {key}: {first['msg']}") from None
