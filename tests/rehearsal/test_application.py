"""This application, rehearsed: its deploys, its failures, and how it gets over them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from development.postgres import postgres
from rehearsal.findings import Weight
from rehearsal.report import Report
from tests.rehearsal.sample import commit, errors, git, rehearse, told
from tests.repository import checkout

# The images are built once for all tests here; and no other build takes the processor away from an
# application that is under load.
pytestmark = pytest.mark.xdist_group("builds")

RATE = 200  # requests a second

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
ADA = """
    INSERT INTO users (username, email, password_hash) VALUES ('ada', 'ada@example.com', 'none')
"""
EVERYTHING = "SELECT users.*, version_num FROM users, alembic_version ORDER BY id"
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


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    repository = checkout(tmp_path_factory.mktemp("releases") / "repository")
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
    return Releases(
        repository, tmp_path_factory.mktemp("state") / ".rehearsal", first, second, broken
    )


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


async def test_first_deploy_and_the_next(releases: Releases) -> None:
    report = await rehearse(
        releases.repository, releases.state, revision=releases.first, environment="first"
    )
    is_green(report)
    stages = [stage.name for stage in report.stages]
    assert stages == [
        *("validate", "build", "freeze", "services", "front", "environment"),
        *("start", "post_start", "deploy", "probe", "stop", "inspect"),
    ]
    assert report.hold is not None
    assert set(report.hold.parts) == {"start", "post_start", "deploy"}
    print("hold window:", report.hold)
    assert json.loads(json.dumps(report.document()))["ok"] is True

    # The data has stayed, and the image is not built again.
    report = await rehearse(
        releases.repository, releases.state, revision=releases.first, environment="first"
    )
    is_green(report)
    (build,) = [stage for stage in report.stages if stage.name == "build"]
    assert "as built before" in build.detail


async def test_rolling_deploy_loses_nothing(releases: Releases) -> None:
    report = await rehearse(
        releases.repository,
        releases.state,
        revision=releases.second,
        strategy="rolling",
        previous=releases.first,
        environment="rolling",
    )
    is_green(report)
    assert report.load is not None
    print("load:", report.load)
    assert report.load["failed"] == 0, told(report)
    assert report.load["lost"] == 0, told(report)
    assert report.load["rate"] >= RATE, report.load
    kinds = report.load["kinds"]
    assert kinds["GET /"]["answered"] > RATE
    for kind in ("POST /register/", "POST /login/", "GET /users/"):
        assert kinds[kind]["answered"] > 0, kind
    assert report.load["writes"] == kinds["POST /register/"]["answered"]
    assert report.hold is not None
    assert report.hold.parts == {}


async def test_stop_start_holds_and_does_not_refuse(releases: Releases) -> None:
    report = await rehearse(
        releases.repository,
        releases.state,
        revision=releases.second,
        strategy="stop-start",
        previous=releases.first,
        environment="stop-start",
    )
    is_green(report)
    assert report.load is not None
    assert report.hold is not None
    print("load:", report.load, "hold:", report.hold)
    assert report.load["failed"] == 0, told(report)
    assert report.load["lost"] == 0, told(report)
    assert set(report.hold.parts) == {"stop", "start", "post_start", "deploy"}
    assert report.hold.waited > 0
    assert report.hold.longest <= report.hold.seconds + 1


async def test_failing_migration_is_told_and_healed_by_the_next_release(
    releases: Releases,
) -> None:
    async def release(revision: str) -> Report:
        return await rehearse(
            releases.repository, releases.state, revision=revision, environment="failing"
        )

    is_green(await release(releases.first))
    await query(releases, "failing", ADA)
    before = await query(releases, "failing", EVERYTHING)
    report = await release(releases.broken)
    assert report.exit_code == 1
    (deploy,) = [finding for finding in errors(report) if finding.stage == "deploy"]
    assert "deploy ends with exit code 1" in deploy.message
    assert "division by zero" in deploy.excerpt
    assert "the platform goes on" in deploy.consequence
    # What visitors see: words, no traceback; the application says itself why.
    (seen,) = report.seen
    assert re.search(r"/login/ (200|503)", seen), seen
    assert '/readyz 503 {"' in seen, seen
    assert '"reason":"schema"' in seen.replace(" ", ""), seen
    assert not any("traceback" in finding.message for finding in report.findings), told(report)

    assert await query(releases, "failing", EVERYTHING) == before  # though it began with an UPDATE

    is_green(await release(releases.second))
    (row,) = await query(releases, "failing", "SELECT username, nickname FROM users")
    assert tuple(row) == ("ada", None)


async def test_broken_on_purpose(releases: Releases) -> None:
    """What users would see, for the steps that need this application."""

    async def with_broken(step: str) -> Report:
        return await rehearse(
            releases.repository,
            releases.state,
            revision=releases.first,
            environment=f"broken-{step}",
            broken=step,
        )

    report = await with_broken("migration")
    assert [finding.stage for finding in errors(report)].count("deploy") == 1, told(report)
    assert "the rehearsal lets this migration fail" in told(report)

    report = await with_broken("publish")
    assert any("publish" in finding.excerpt for finding in errors(report)), told(report)
    assert any("/static/" in finding.message for finding in errors(report)), told(report)
    assert any("/readyz 200" in line for line in report.seen), report.seen  # it has migrated

    report = await with_broken("database")
    assert "/readyz 503" in report.seen[0], told(report)
    assert not [finding for finding in errors(report) if finding.stage == "deploy"], told(report)

    report = await with_broken("kill")
    assert any("was back after" in line for line in report.seen), told(report)


async def test_preview_begins_with_a_copy(releases: Releases) -> None:
    production = await rehearse(
        releases.repository, releases.state, revision=releases.first, environment="original"
    )
    is_green(production)
    mount = releases.state / "environments" / "original" / "mounts" / "static"
    (mount / "uploaded.txt").write_text("kept")
    report = await rehearse(
        releases.repository,
        releases.state,
        revision=releases.second,
        environment="preview",
        environment_type="development",
        clone_of="original",
    )
    is_green(report)
    copy = releases.state / "environments" / "preview" / "mounts" / "static"
    assert (copy / "uploaded.txt").read_text() == "kept"
    # It is a deploy on production's schema: the second migration alone has run.
    log = (releases.state / "environments" / "preview" / "logs" / "hooks.log").read_text()
    assert log.count("Running upgrade") == 1, log
