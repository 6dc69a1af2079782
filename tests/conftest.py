"""A real PostgreSQL for the whole run, and a database of its own for each test that asks."""

import fcntl
import gc
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import asyncpg
import psutil
import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import make_url

from app import create_app
from app.settings import ROOT, Settings
from development.postgres import postgres
from quart_upsun.database.url import parse_database_url
from quart_upsun.web import templating
from quart_upsun.web.assets import AssetsMissingError
from tests.tools import require, summary

if TYPE_CHECKING:
    from tests.rehearsal.releases import Releases

_stack = ExitStack()

# Beside the cluster: where the processes of one run of tests agree on who runs alone.
TURN = "TEST_TURN"

MEMORY = Path("/dev/shm")
ROOM = 4 * 2**30  # bytes; a run takes a fraction


def quick_place() -> str:
    """Return where a cluster is quick, or the usual place.

    A database is a thousand files that come and go with a test. On a disk that can take longer than
    the test itself.
    """
    if os.access(MEMORY, os.W_OK):
        free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
        if free > ROOM:
            return str(MEMORY)
    return tempfile.gettempdir()


def pytest_configure(config: pytest.Config) -> None:
    """Start the server once, in the process that hands the tests out."""
    # A shell without job control starts what is in the background with SIGINT ignored, and the
    # programs that tests start and interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # What the developer's shell says about databases and platforms is not for the tests.
    for name in list(os.environ):
        if name.startswith(("PLATFORM_", "POSTGRESQL_", "DB_")) or name in {
            *(field.upper() for field in Settings.model_fields),
            "SECRET_KEY_FALLBACKS",
        }:
            del os.environ[name]
    # The databases of tests belong to the tests, and to the processes that they start.
    os.environ["DATABASE_ENVIRONMENT"] = "tests"
    if not hasattr(config, "workerinput"):
        temporary = tempfile.TemporaryDirectory(prefix="quart-upsun-", dir=quick_place())
        directory = Path(_stack.enter_context(temporary))
        os.environ[TURN] = str(directory / "turn")
        os.environ["TEST_SERVER_URL"] = _stack.enter_context(
            postgres(directory / "data", durable=False, max_connections=300)
        )
        # Each application would compile its templates anew, and each server that tests start:
        # that would be most of the time that many a test takes.
        with suppress(AssetsMissingError):  # the tests that need them say so
            templating.compile_all("app")


def pytest_collection_finish() -> None:
    """Take what is loaded out of the garbage collector's way: it would look at it for each test."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line which programs are missing, instead of once for each test."""
    reports = terminalreporter.stats.get("skipped", [])
    for line in summary(report.longrepr[2] for report in reports):
        terminalreporter.write_line(line, yellow=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    _stack.close()


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Run beside other tests, or when they have ended and none begins."""
    place = os.environ[TURN]
    with open(f"{place}.next", "w") as queue, open(f"{place}.now", "w") as running:
        # Who waits to be alone waits here with all who come later: else some test always runs.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    with turn(alone=False):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with turn(alone=item.get_closest_marker("alone") is not None):
        yield


@pytest.fixture(scope="session")
def server_url() -> str:
    """The address of the test server's maintenance database."""
    return os.environ["TEST_SERVER_URL"]


async def create_database(server_url: str, template: str) -> str:
    """Create a database, and return its URL in the form a platform would give."""
    name = f"test_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(
            f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY'
        )
    finally:
        await connection.close()
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def drop_database(server_url: str, url: str) -> None:
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')
    finally:
        await connection.close()


@pytest.fixture
async def empty_database(server_url: str) -> AsyncIterator[str]:
    """A database nobody has migrated."""
    url = await create_database(server_url, "template0")
    yield url
    await drop_database(server_url, url)


def migrate() -> None:
    if ini := os.environ.get("TEST_MIGRATIONS"):
        # Those of the next release, on which this one must work: rehearsal/compatibility.py.
        alembic = [sys.executable, "-m", "alembic", "-c", ini, "upgrade", "head"]
        subprocess.run(alembic, cwd=Path(ini).parent, check=True)
    else:
        command.upgrade(Config(ROOT / "alembic.ini"), "head")


@pytest.fixture(scope="session")
async def migrated_template(server_url: str) -> AsyncIterator[str]:
    """The name of a database at the newest revision, to copy from."""
    url = await create_database(server_url, "template0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        migrate()
    name = make_url(url).database
    assert name
    yield name
    await drop_database(server_url, url)


@pytest.fixture
async def database_url(server_url: str, migrated_template: str) -> AsyncIterator[str]:
    """A migrated database that belongs to one test."""
    url = await create_database(server_url, migrated_template)
    yield url
    await drop_database(server_url, url)


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(
        database_url=parse_database_url(database_url),
        secret_key=SecretStr("a key for tests, of no worth anywhere else"),
        log_level="debug",
        run_jobs=False,  # a test runs them when it wants to: `jobs.run_due()`
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    """The application, started; exceptions become error pages as in production."""
    app = create_app(settings)
    async with app.test_app():
        yield app


@pytest.fixture
def client(app: Quart) -> Client:
    return cast(Client, app.test_client())


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> "Releases":
    """Releases of this application.

    For tests in the group `builds` alone: elsewhere they would be built once more.
    """
    from tests.rehearsal.releases import make_releases

    return make_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
async def images(releases: "Releases") -> dict[str, Path]:
    """What the build hook has made of the first and the second of them, by revision."""
    from tests.rehearsal.releases import build_images

    require("bwrap")
    return await build_images(releases)


@pytest.fixture
def built(releases: "Releases", images: dict[str, Path]) -> "Releases":
    """The releases with their images: no build is to take the processor away from visitors."""
    return releases
