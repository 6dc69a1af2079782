"""Apply the recipes of docs/migrations.md to a copy of the migrations."""

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
# The header of a generated migration; see alembic/script.py.mako.
HEADER = '''"""{name}

Revision ID: {revision}
Revises: {down_revision}
"""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"
branch_labels = None
depends_on = None


'''


def alembic(url: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run Alembic's command line in this repository."""
    return alembic_in(ROOT, url, *arguments, **variables)


def alembic_in(
    directory: Path, url: str, *arguments: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run Alembic's command line in a copy of this repository.

    Args:
        directory: the root of the copy.
        url: the database.
        arguments: of the command line.
        variables: further environment variables.
    """
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=directory,
        env={**os.environ, "DATABASE_URL": url, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def copy_with_second_migration(target: Path) -> Path:
    """Copy the migrations, and add one that needs an exclusive lock on `users`."""
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
    """Return the name and code of every marked block, in the order of the document."""
    return [(found["name"], found["code"]) for found in BLOCK.finditer(DOCUMENT.read_text())]


def recipe(name: str) -> list[str]:
    """Return the code of the blocks with a name, such as `rename 2 migration`."""
    return [code for found, code in blocks() if found == name]


def head() -> str:
    """Return the head revision of this repository."""
    found = ScriptDirectory(str(ROOT / "alembic")).get_heads()
    assert len(found) == 1, f"multiple heads: {found}; join them with `alembic merge`"
    return found[0]


def applied(diff: str, text: str) -> str:
    """Apply a block of `+`, `-` and unchanged lines to a text that contains the old lines once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if not line.startswith("+"))
    new = "".join(line[1:] for line in lines if not line.startswith("-"))
    assert text.count(old) == 1, f"expected exactly once in the models:\n{old}"
    return text.replace(old, new)


def reworded(code: str, words: Mapping[str, str]) -> str:
    """Replace words, all at the same time."""
    pattern = "|".join(re.escape(word) for word in words)
    # Match parts of the name of a constraint, but not parts of a word.
    return (
        re.sub(rf"(?<![a-z])({pattern})(?![a-z])", lambda m: words[m[0]], code) if words else code
    )


class Code:
    """The running code of a release: its models on an engine of the application.

    Its connections stay open, with prepared statements, while later releases migrate.
    """

    def __init__(self, path: Path, url: str) -> None:
        # The models of several releases are loaded at the same time, so each needs its own base.
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

    async def use_table(self, **values: object) -> None:
        """Insert, find, update and list users, as the application does."""
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
        """Return every row, with all columns of this release."""
        async with self.database.read() as session:
            return list(await session.scalars(select(self.user).order_by(self.user.id)))

    async def drift(self) -> list[Any]:
        """Return the differences between models and schema, as in `alembic check`.

        Only tables of the recipes are compared.
        """

        def is_ours(name: str | None, kind: str, parents: object) -> bool:
            return kind != "table" or name in self.metadata.tables

        def compare(connection: Connection) -> list[Any]:
            context = MigrationContext.configure(connection, opts={"include_name": is_ours})
            return list(compare_metadata(context, self.metadata))

        async with self.database.engine.connect() as connection:
            return await connection.run_sync(compare)


class MigrationFailedError(Exception):
    """A migration failed, as it would fail the deploy hook."""


class Tree:
    """A copy of the migrations, with releases that follow the recipes, and its database."""

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
        """Load the code of the current release, or code with the given models."""
        path = self.directory / f"release_{len(self.running)}.py"
        path.write_text(applied("-from quart_upsun.database import Base\n", models or self.models))
        self.running.append(Code(path, self.url))
        return self.running[-1]

    async def release(
        self, name: str, number: int, *, previous: Code | None = None, **renamed: str
    ) -> None:
        """Apply one release of a recipe, and migrate.

        Args:
            name: the name of the recipe.
            number: the number of the release in the recipe.
            previous: the code of the previous release, which must work after each migration.
            renamed: words to replace in the recipe.
        """
        for diff in recipe(f"{name} {number} model"):
            self.models = applied(reworded(diff, renamed), self.models)
        migrations = recipe(f"{name} {number} migration")
        for position, code in enumerate(migrations):
            code = reworded(code, renamed)
            self.add(code, f"{name} {number}")
            if previous is not None or position == len(migrations) - 1:
                await self.upgrade()
            if previous is not None:
                await previous.use_table()

    def add(self, code: str, name: str = "added by a test") -> Path:
        """Write a migration on top of the existing ones."""
        revision = f"step{len(self._revisions)}"
        path = self.directory / "alembic" / "versions" / f"{revision}.py"
        header = HEADER.format(name=name, revision=revision, down_revision=self._revisions[-1])
        path.write_text(header + code)
        self._revisions.append(revision)
        return path

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start the command line, as a concurrent deploy does."""
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
        """Downgrade to the head revision of this repository."""
        await self._migrate(command.downgrade, head())

    async def _migrate(self, migrate: Callable[[Config, str], None], revision: str) -> None:
        config = Config(self.directory / "alembic.ini")
        config.set_main_option("script_location", str(self.directory / "alembic"))
        # Run Alembic in this process: starting another one takes most of the time.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", self.url)
            try:
                await asyncio.to_thread(migrate, config, revision)
            except Exception as error:
                raise MigrationFailedError(str(error)) from error

    def lint(self) -> "subprocess.CompletedProcess[str]":
        """Lint the migrations of this tree, as `make lint` does; without any, the existing ones."""
        return subprocess.run(
            [sys.executable, "-m", "development.migrations_lint", *self._revisions[1:]],
            cwd=self.directory,
            env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            capture_output=True,
            text=True,
        )

    async def close(self) -> None:
        for code in self.running:
            await code.database.close()
