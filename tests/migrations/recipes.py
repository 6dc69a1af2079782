"""The recipes of docs/migrations.md, taken from the document and put into a tree of their own."""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, select
from sqlalchemy.orm import DeclarativeBase

from app.settings import ROOT
from quart_upsun.database import Base, Database
from quart_upsun.database.url import parse_database_url

DOCUMENT = ROOT / "docs" / "migrations.md"
MODELS = ROOT / "app" / "user" / "models.py"
BLOCK = re.compile(
    r"^<!-- recipe: (?P<name>[a-z-]+ \d (?:model|migration))(?: \d)? -->\n"
    r"```(?:python|diff)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# What `alembic revision` writes above the functions; see alembic/script.py.mako.
HEADER = '''"""{name}

Revision: {revision}
Follows: {down_revision}
"""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"
branch_labels = None
depends_on = None


'''


def copy_with_second_migration(target: Path) -> Path:
    """A tree like this one, with a migration that needs an exclusive lock on `users`."""
    target.mkdir()
    (target / "alembic.ini").write_text(
        (ROOT / "alembic.ini").read_text().replace("attempts = 5", "attempts = 2")
    )
    for package in ("app", "quart_upsun"):
        (target / package).symlink_to(ROOT / package)
    (target / "alembic" / "versions").mkdir(parents=True)
    (target / "alembic" / "env.py").symlink_to(ROOT / "alembic" / "env.py")
    for version in (ROOT / "alembic" / "versions").glob("*.py"):
        (target / "alembic" / "versions" / version.name).symlink_to(version)
    (target / "alembic" / "versions" / "second.py").write_text(
        "from alembic import op\n"
        'revision = "second"\n'
        f'down_revision = "{head()}"\n'
        'def upgrade(): op.execute("ALTER TABLE users ADD COLUMN second integer")\n'
        'def downgrade(): op.execute("ALTER TABLE users DROP COLUMN second")\n'
    )
    return target


def blocks() -> list[tuple[str, str]]:
    """Return name and code of every marked block, in the document's order."""
    return [(found["name"], found["code"]) for found in BLOCK.finditer(DOCUMENT.read_text())]


def recipe(name: str) -> list[str]:
    """Return the code of the blocks of one name, such as `rename 2 migration`."""
    return [code for found, code in blocks() if found == name]


def head() -> str:
    """Return the newest revision of this repository."""
    found = ScriptDirectory(str(ROOT / "alembic")).get_heads()
    assert len(found) == 1, f"two branches of migrations: {found}; `alembic merge` joins them"
    return found[0]


def applied(diff: str, text: str) -> str:
    """Apply a block of `+`, `-` and unchanged lines to a text that has its old lines once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if not line.startswith("+"))
    new = "".join(line[1:] for line in lines if not line.startswith("-"))
    assert text.count(old) == 1, f"the models do not hold, or not once:\n{old}"
    return text.replace(old, new)


def reworded(code: str, words: Mapping[str, str]) -> str:
    """Put other words in the place of some, all at once."""
    pattern = "|".join(re.escape(word) for word in words)
    # Not inside another word, but inside the name of a constraint.
    return (
        re.sub(rf"(?<![a-z])({pattern})(?![a-z])", lambda m: words[m[0]], code) if words else code
    )


class Code:
    """The code of one release, running: its models on the engine of the application.

    Its connections stay open, and its statements prepared, while later releases migrate.
    """

    def __init__(self, path: Path, url: str) -> None:
        # Models of several releases live side by side, so each has a base of its own.
        names = MetaData(naming_convention=Base.metadata.naming_convention)
        own: Any = type("Base", (DeclarativeBase,), {"metadata": names})
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        module.Base = own
        spec.loader.exec_module(module)
        self.user = module.User
        self.metadata = names
        self.database = Database(parse_database_url(url), pool_size=1)
        self._count = 0
        self._name = path.stem

    async def works(self, **values: object) -> None:
        """Do what the application does with the table: add, find, list, change."""
        user = self.user
        self._count += 1
        name = f"{self._name}_{self._count}"
        async with self.database.write() as session:
            session.add(
                user(
                    username=name,
                    email=f"{name}@example.com",
                    password_hash="x",
                    **values,
                )
            )
        async with self.database.read() as session:
            found = await session.scalar(select(user).where(user.username == name))
        for column, value in values.items():
            assert getattr(found, column) == value
        async with self.database.write() as session:
            same: Any = await session.scalar(select(user).where(user.username == name))
            same.session_version += 1
            for column, value in values.items():
                setattr(same, column, value)
        await self.rows()

    async def rows(self) -> list[Any]:
        """Read every row with every column this release knows."""
        async with self.database.read() as session:
            return list(await session.scalars(select(self.user).order_by(self.user.id)))

    async def drift(self) -> list[Any]:
        """Return the differences between models and schema, as `alembic check` sees them.

        Other tables than that of the recipes are no business of theirs.
        """

        def is_ours(name: str | None, kind: str, parents: object) -> bool:
            return kind != "table" or name in self.metadata.tables

        def compare(connection: Connection) -> list[Any]:
            context = MigrationContext.configure(connection, opts={"include_name": is_ours})
            return list(compare_metadata(context, self.metadata))

        async with self.database.engine.connect() as connection:
            return await connection.run_sync(compare)


class MigrationFailedError(Exception):
    """`alembic` would have ended with this message, and the deploy hook with it."""


class Tree:
    """A repository whose releases follow the recipes, and its database."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.models = MODELS.read_text()
        self.running: list[Code] = []
        self._revisions = [head()]
        (directory / "alembic" / "versions").mkdir(parents=True)
        self.configure(lock_timeout="200ms", attempts="1")
        for name in (
            "app",
            "quart_upsun",
            "embedded_postgres",
            "development",
            ".squawk.toml",
            "alembic/env.py",
        ):
            (directory / name).symlink_to(ROOT / name)
        for version in (ROOT / "alembic" / "versions").glob("*.py"):
            shutil.copy(version, directory / "alembic" / "versions")

    def configure(self, **options: str) -> None:
        """Set options of alembic.ini."""
        path = self.directory / "alembic.ini"
        text = (path if path.exists() else ROOT / "alembic.ini").read_text()
        for name, value in options.items():
            text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
            assert count == 1, name
        path.write_text(text)

    def code(self, models: str = "") -> Code:
        """Start the code of the newest release, or that with certain models."""
        path = self.directory / f"release_{len(self.running)}.py"
        path.write_text(applied("-from quart_upsun.database import Base\n", models or self.models))
        self.running.append(Code(path, self.url))
        return self.running[-1]

    async def release(
        self, name: str, number: int, *, before: Code | None = None, **renamed: str
    ) -> None:
        """Make one release of a recipe, and migrate.

        Args:
            before: the release before, which must work after each of the migrations.
            renamed: what stands in the place of words of the recipe.
        """
        for diff in recipe(f"{name} {number} model"):
            self.models = applied(reworded(diff, renamed), self.models)
        migrations = recipe(f"{name} {number} migration")
        for position, code in enumerate(migrations):
            code = reworded(code, renamed)
            self.add(code, f"{name} {number}")
            if before is not None or position == len(migrations) - 1:
                await self.upgrade()
            if before is not None:
                await before.works()

    def add(self, code: str, name: str = "by hand") -> Path:
        """Write a migration that follows those that are there."""
        revision = f"step{len(self._revisions)}"
        path = self.directory / "alembic" / "versions" / f"{revision}.py"
        header = HEADER.format(name=name, revision=revision, down_revision=self._revisions[-1])
        path.write_text(header + code)
        self._revisions.append(revision)
        return path

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Run the command line, as another deploy would at the same time."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "alembic", *arguments),
            cwd=self.directory,
            env={**os.environ, "DATABASE_URL": self.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def upgrade(self) -> None:
        await self._migrate(command.upgrade, "head")

    async def downgrade(self) -> None:
        """Go back to where this repository's own migrations end."""
        await self._migrate(command.downgrade, head())

    async def _migrate(self, verb: Callable[[Config, str], None], revision: str) -> None:
        config = Config(self.directory / "alembic.ini")
        config.set_main_option("script_location", str(self.directory / "alembic"))
        # Alembic's own command, but in this process: starting another takes most of the time.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", self.url)
            try:
                await asyncio.to_thread(verb, config, revision)
            except Exception as error:
                raise MigrationFailedError(str(error)) from error

    def lint(self) -> "subprocess.CompletedProcess[str]":
        """Do what `make lint` does with migrations."""
        return subprocess.run(
            [sys.executable, "-m", "development.migrations_lint"],
            cwd=self.directory,
            env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            capture_output=True,
            text=True,
        )

    async def close(self) -> None:
        for code in self.running:
            await code.database.close()
