"""Fixtures and hooks for all tests: a PostgreSQL server, exclusive tests, required programs."""

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
from jinja2.bccache import Bucket
from sqlalchemy import URL, make_url
from werkzeug.routing import Rule

from embedded_postgres import postgres
from embedded_postgres.replication import Cluster, replication
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.databases import connected, create_database, drop_database
from quart_upsun.testing.pgbouncer import pgbouncer
from quart_upsun.testing.programs import require, summary
from quart_upsun.web.templating import PrecompiledCache

_stack = ExitStack()

# The marks of tests that start before all others, in this order.
EARLY = ("alone", "long")

# The variable with the path of the lock files that the processes of a test run share.
LOCK_VARIABLE = "TEST_RUN_LOCK"

MEMORY = Path("/dev/shm")
MIN_FREE_MEMORY_BYTES = 4 * 2**30  # a test run needs a fraction of it


def cluster_directory() -> str:
    """Return the parent directory for the PostgreSQL cluster: in memory if possible.

    A test database consists of a thousand files. On a slow disk, creating and removing them can
    take longer than the test.
    """
    if os.access(MEMORY, os.W_OK):
        free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
        if free > MIN_FREE_MEMORY_BYTES:
            return str(MEMORY)
    return tempfile.gettempdir()


def cache_url_rules() -> None:
    """Let Werkzeug compile each URL rule once per test run instead of once per application.

    Compiling takes a fifth of the time of a test with an application.
    """
    compile_builder = Rule._compile_builder
    builders: dict[tuple[Any, ...], Any] = {}

    def compile_once(rule: Rule, append_unknown: bool = True) -> Any:
        # Everything that the compiled function depends on. The rule itself is an argument of it.
        key = (rule.rule, tuple(rule._trace), repr(rule.defaults), append_unknown)
        if key not in builders:
            builders[key] = compile_builder(rule, append_unknown)
        return builders[key]

    Rule._compile_builder = compile_once  # type: ignore[method-assign, assignment]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pooler",
        action="store_true",
        help="let the applications of tests connect through PgBouncer in transaction mode",
    )


def cache_templates() -> None:
    """Let Jinja read each compiled template once per test run instead of once per application."""
    load = PrecompiledCache.load_bytecode
    codes: dict[tuple[str, str, str], Any] = {}

    def load_once(cache: PrecompiledCache, bucket: Bucket) -> None:
        key = (cache.directory, bucket.key, bucket.checksum)
        if (code := codes.get(key)) is None:
            load(cache, bucket)
            codes[key] = bucket.code
        else:
            bucket.code = code

    PrecompiledCache.load_bytecode = load_once  # type: ignore[method-assign, assignment]


def pytest_configure(config: pytest.Config) -> None:
    """Start the PostgreSQL server, once per test run, in the controller process."""
    # A shell without job control starts background processes with SIGINT ignored. Programs that
    # tests start and interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cache_url_rules()
    cache_templates()
    # Ignore settings in the developer's environment and in `.env`.
    os.environ["QUART_SKIP_DOTENV"] = "1"
    for name in list(os.environ):
        if name.startswith(("PLATFORM_", "POSTGRESQL_", "DB_", "OIDC_")):
            del os.environ[name]
    # The owner of the test databases, also for subprocesses of tests.
    os.environ["DATABASE_ENVIRONMENT"] = "tests"
    if not hasattr(config, "workerinput"):
        temporary = tempfile.TemporaryDirectory(prefix="test-run-", dir=cluster_directory())
        directory = Path(_stack.enter_context(temporary))
        os.environ[LOCK_VARIABLE] = str(directory / "lock")
        os.environ["TEST_SERVER_URL"] = _stack.enter_context(
            postgres(directory / "data", durable=False, max_connections=300)
        )
        if config.getoption("--pooler"):
            running = pgbouncer(os.environ["TEST_SERVER_URL"], directory)
            os.environ["TEST_POOLER_URL"] = _stack.enter_context(running).url(
                os.environ["TEST_SERVER_URL"]
            )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long tests before short ones, which then keep all processes busy until the end.

    A test marked `alone` comes first: it would wait until a long test in another process ends.
    """

    def rank(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(EARLY) if item.get_closest_marker(name)), 2)

    items.sort(key=rank)  # within a rank, the order stays random


def pytest_collection_finish() -> None:
    """Exclude all loaded objects from garbage collection, which would scan them in each test."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report missing programs in one line instead of once per test."""
    reports = terminalreporter.stats.get("skipped", [])
    for line in summary(report.longrepr[2] for report in reports):
        terminalreporter.write_line(line, yellow=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    _stack.close()


@contextmanager
def run_lock(*, alone: bool) -> Iterator[None]:
    """Hold a shared lock while a test runs, or an exclusive one for a test marked `alone`."""
    path = os.environ[LOCK_VARIABLE]
    with open(f"{path}.next", "w") as queue, open(f"{path}.now", "w") as running:
        # The queue lock keeps later tests from starting while an exclusive test waits.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    for marker in item.iter_markers("requires"):
        for program in marker.args:
            require(program)
    with run_lock(alone=False):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with run_lock(alone=item.get_closest_marker("alone") is not None):
        yield


@pytest.fixture(scope="session")
def server_url() -> str:
    """The URL of the maintenance database of the test server."""
    return os.environ["TEST_SERVER_URL"]


@pytest.fixture(scope="session")
async def maintenance(server_url: str) -> AsyncIterator[Any]:
    """A connection that creates and drops the databases of tests."""
    async with connected(server_url) as connection:
        yield connection


@pytest.fixture
async def empty_database(server_url: str, maintenance: Any) -> AsyncIterator[str]:
    """The URL of an empty database, without migrations."""
    url = await create_database(server_url, "template0", maintenance)
    yield url
    await drop_database(server_url, url, maintenance)


def migrate() -> None:
    if ini := os.environ.get("TEST_MIGRATIONS"):
        # The next release's migrations, for the compatibility check: rehearsal/compatibility.py.
        alembic = [sys.executable, "-m", "alembic", "-c", ini, "upgrade", "head"]
        subprocess.run(alembic, cwd=Path(ini).parent, check=True)
    else:
        command.upgrade(Config(Path(__file__).with_name("alembic.ini")), "head")


@contextmanager
def migrated_replication() -> Iterator[tuple[Cluster, Cluster]]:
    """Run a primary with a migrated database, and a standby that replays its log."""
    with (
        tempfile.TemporaryDirectory(prefix="test-replica-", dir=cluster_directory()) as directory,
        replication(Path(directory) / "servers") as (primary, standby),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", primary.url())
            migrate()
        yield primary, standby


@pytest.fixture(scope="session")
async def migrated_template(server_url: str) -> AsyncIterator[str]:
    """The name of a migrated database, used as a template for others."""
    url = await create_database(server_url, "template0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        migrate()
    name = make_url(url).database
    assert name
    yield name
    await drop_database(server_url, url)


@pytest.fixture
async def database_url(
    server_url: str, migrated_template: str, maintenance: Any
) -> AsyncIterator[str]:
    """The URL of a migrated database for one test."""
    url = await create_database(server_url, migrated_template, maintenance)
    yield url
    await drop_database(server_url, url, maintenance)


@pytest.fixture
def application_url(database_url: str) -> URL:
    """The URL that an application gets as DATABASE_URL: with `--pooler`, that of PgBouncer."""
    url = parse_database_url(database_url)
    if pooler := os.environ.get("TEST_POOLER_URL"):
        address = parse_database_url(pooler)
        return url.set(host=address.host, port=address.port)
    return url


@pytest.fixture
def direct_url(database_url: str) -> URL | None:
    """The URL that an application gets as DATABASE_DIRECT_URL; None without `--pooler`."""
    return parse_database_url(database_url) if os.environ.get("TEST_POOLER_URL") else None
