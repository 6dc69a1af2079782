"""Three releases of this application, and their rehearsals: the images are built once for all."""

import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from development.postgres import postgres
from rehearsal.findings import Weight
from rehearsal.report import Report
from tests.rehearsal.sample import commit, git, told
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
MIGRATION = "alembic/versions/20990101_00000000c0de_a_column_more.py"
STYLE = "assets/css/main.scss"


@dataclass(frozen=True)
class Releases:
    """A repository with three releases, and where their rehearsals are kept."""

    repository: Path
    state: Path
    first: str
    """As it lies here."""
    second: str
    """With another style sheet, and a migration that adds a column."""
    broken: str
    """The first, with a migration that fails."""


def make_releases(directory: Path) -> Releases:
    repository = checkout(directory / "repository")
    names = sorted(path.name for path in (repository / "alembic" / "versions").glob("*.py"))
    head = re.findall(r"^\d+_([0-9a-f]{12})_", names[-1])[0]
    first = commit(repository, {}, "The first release")
    style = (repository / STYLE).read_text()
    second = commit(
        repository,
        {MIGRATION: ADDITIVE.format(head=head), STYLE: f"{style}\n.brand-new {{ color: red; }}\n"},
        "The second",
    )
    git(repository, "checkout", "--quiet", first)
    broken = commit(repository, {MIGRATION: FAILING.format(head=head)}, "A broken one")
    return Releases(repository, directory / ".rehearsal", first, second, broken)


def is_green(report: Report) -> None:
    """Fail with the report if anything is wrong."""
    assert report.exit_code == 0, told(report)
    assert not [f for f in report.findings if f.weight is Weight.WARNING], told(report)


async def query(releases: Releases, environment: str, text: str) -> list[asyncpg.Record]:
    """Ask the database of an environment that is not being rehearsed just now."""
    with postgres(releases.state / "postgres") as url:
        connection = await asyncpg.connect(f"{url.rpartition('/')[0]}/{environment}_postgresql")
        try:
            return list(await connection.fetch(text))
        finally:
            await connection.close()
