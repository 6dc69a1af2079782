"""The Flask application in tests/legacy/, with its own packages and a database by Flask-Migrate."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.settings import ROOT
from quart_upsun.testing.environments import virtual_environment

DIRECTORY = ROOT / "tests" / "legacy"
PACKAGES = ROOT / "build" / "legacy"
SECRET_KEY = "the key of the old application, of no worth anywhere else"


def flask_python() -> Path:
    """Return an interpreter with the packages of the Flask application.

    Installs them the first time. Without a network, the test is skipped, but fails in CI.
    """
    try:
        return virtual_environment(PACKAGES, DIRECTORY / "requirements.txt")
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"The packages of tests/legacy cannot be installed: {error}")


class FlaskApplication:
    """The Flask application with a database.

    Args:
        url: the URL of its database.
        migrations: the directory of Flask-Migrate, made by `create_tables()`.
    """

    def __init__(self, url: str, migrations: Path) -> None:
        self.url = url
        self.python = flask_python()
        self.migrations = migrations
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "SECRET_KEY": SECRET_KEY,
            "DATABASE_URL": url.replace("postgresql://", "postgresql+psycopg://", 1),
            "BCRYPT_LOG_ROUNDS": "4",
        }

    def run(self, *arguments: str, text: str = "") -> str:
        """Run Python with the packages of the application; return its output.

        Args:
            arguments: of the interpreter.
            text: the standard input.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            [self.python, *arguments],
            cwd=DIRECTORY,
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def flask(self, *arguments: str, text: str = "") -> str:
        """Run a `flask` command, like `run()`."""
        return self.run("-m", "flask", "--app", "autoapp", *arguments, text=text)

    def db(self, command: str, *arguments: str) -> str:
        """Run a `flask db` command of Flask-Migrate, like `run()`."""
        return self.flask("db", command, "--directory", str(self.migrations), *arguments)

    def create_tables(self) -> None:
        """Let Flask-Migrate generate the migrations and run them, as a team does."""
        self.db("init")
        self.db("migrate", "-m", "first")
        self.db("upgrade")

    def load_users(self, users: Sequence[dict[str, Any]]) -> None:
        """Create users, whose passwords are hashed with Flask-Bcrypt."""
        self.flask("load-users", text=json.dumps(users))
