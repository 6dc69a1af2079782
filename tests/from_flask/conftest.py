"""The Flask application's database, with users of all kinds."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from quart import Quart
from sqlalchemy import make_url

from app import create_app
from app.settings import ROOT, Settings
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.databases import create_database, drop_database
from quart_upsun.testing.statements import connected
from tests.flask_application import FlaskApplication

KEY = "a key for tests, of no worth anywhere else"  # the key of the fixture `settings`
PASSWORD = "correct horse battery"

# What the Flask application accepts, and this application does not, is among them.
USERS: Sequence[dict[str, Any]] = (
    {
        "username": "ada",
        "email": "ada@example.com",
        "password": PASSWORD,
        "created_at": None,
        "first_name": "Ada",
        "last_name": "Lovelace",
        "active": True,
        "is_admin": True,
    },
    {"username": "bert", "email": "bert@example.com", "password": PASSWORD, "active": False},
    {"username": "Zoë Doe", "email": "Zoe@Example.COM", "password": PASSWORD, "active": True},
    {"username": "ADA", "email": "ADA@example.com", "password": PASSWORD, "active": True},
    {"username": "x", "email": "not an address", "password": PASSWORD, "active": True},
    {
        "username": "cleo",
        "email": "cleo@example.com",
        "password": PASSWORD,
        "active": True,
        "roles": ["admin"],
    },
    {
        "username": "dora",
        "email": "dora@example.com",
        "password": PASSWORD,
        "active": True,
        "roles": ["editor"],
    },
)


class Command:
    """Runs commands of this application with the Flask application's database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = {
            "PATH": os.environ["PATH"],
            "QUART_APP": "app:create_app()",
            "DATABASE_URL": url,
            "DATABASE_ENVIRONMENT": "tests",
            "SECRET_KEY": KEY,
        }

    def __call__(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name(program)), *words],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def done(self, program: str, *words: str) -> str:
        """Run a command that must succeed; return its output."""
        result = self(program, *words)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def refused(self, program: str, *words: str) -> str:
        """Run a command that must fail without a traceback; return its error message."""
        result = self(program, *words)
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stderr
        return result.stderr


@pytest.fixture(scope="session")
async def flask_template(
    server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[FlaskApplication]:
    """The Flask application with the empty database that Flask-Migrate has made for it."""
    url = await create_database(server_url, "template0")
    application = FlaskApplication(url, tmp_path_factory.mktemp("flask") / "migrations")
    application.create_tables()
    yield application
    await drop_database(server_url, url)


@pytest.fixture
async def flask_application(
    server_url: str, flask_template: FlaskApplication
) -> AsyncIterator[FlaskApplication]:
    """The Flask application with a database for one test."""
    name = make_url(flask_template.url).database
    url = await create_database(server_url, str(name))
    yield FlaskApplication(url, flask_template.migrations)
    await drop_database(server_url, url)


@pytest.fixture
async def shop(flask_application: FlaskApplication) -> FlaskApplication:
    """The Flask application with users and an order."""
    flask_application.load_users(
        [{key: value for key, value in user.items() if value is not None} for user in USERS]
    )
    async with connected(flask_application.url) as connection:
        await connection.execute(
            "UPDATE users SET created_at = '2020-01-02 03:04:05' WHERE id = 1;"
            "INSERT INTO orders (user_id, title) VALUES (4, 'A book')"
        )
    return flask_application


@pytest.fixture
def run(shop: FlaskApplication) -> Command:
    return Command(shop.url)


@pytest.fixture
def adopted(run: Command, shop: FlaskApplication) -> Command:
    """Commands of this application, after `quart adopt`; the Flask application goes on."""
    run.done("quart", "adopt", "--yes")
    shop.environment["DATABASE_URL"] += "?options=-csearch_path%3Dflask"
    return run


@pytest.fixture
async def adopted_app(adopted: Command, settings: Settings) -> AsyncIterator[Quart]:
    """This application, running on the adopted database."""
    url = parse_database_url(adopted.url)
    app = create_app(settings.model_copy(update={"database_url": url}))
    async with app.test_app():
        yield app
