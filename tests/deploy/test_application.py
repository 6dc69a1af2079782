"""Rehearsals of this application: deploys, failures and recovery."""

import json
import re

import pytest

from rehearsal.load import SHARE
from rehearsal.report import Report
from rehearsal.tests.sample import errors, rehearse, summary
from tests.deploy.releases import (
    LEFT,
    Releases,
    assert_no_problems,
    enqueued_jobs,
    log_of,
    query,
)

# All tests share the images.
pytestmark = [pytest.mark.xdist_group("builds"), pytest.mark.requires("bwrap", "nginx")]

RATE = 200  # requests per second, if the machine is fast enough

ADA = """
    INSERT INTO users (username, email, password_hash) VALUES ('ada', 'ada@example.com', 'none')
"""
EVERYTHING = "SELECT users.*, version_num FROM users, alembic_version ORDER BY id"


async def test_first_deploy_and_the_next(releases: Releases) -> None:
    report = await rehearse(
        releases.repository, releases.state, revision=releases.first, environment="first"
    )
    assert_no_problems(report)
    stages = [stage.name for stage in report.stages]
    assert stages == [
        *("validate", "build", "freeze", "services", "front", "environment"),
        *("start", "post_start", "deploy", "probe", "post_deploy", "workers", "stop", "inspect"),
    ]
    assert report.hold is not None
    assert set(report.hold.parts) == {"start", "post_start", "deploy"}
    print("hold window:", report.hold)
    assert json.loads(json.dumps(report.document()))["ok"] is True

    # The second deploy keeps the data and reuses the image.
    report = await rehearse(
        releases.repository, releases.state, revision=releases.first, environment="first"
    )
    assert_no_problems(report)
    (build,) = [stage for stage in report.stages if stage.name == "build"]
    assert "reused" in build.detail


@pytest.mark.alone
async def test_rolling_deploy_loses_nothing(built: Releases) -> None:
    async with enqueued_jobs(built, "rolling"):
        report = await rehearse(
            built.repository,
            built.state,
            revision=built.second,
            strategy="rolling",
            previous=built.first,
            environment="rolling",
        )
    assert_no_problems(report)
    assert report.load is not None
    print("load:", report.load)
    assert report.load["failed"] == 0, summary(report)
    assert report.load["lost"] == 0, summary(report)
    least = min(RATE, 0.9 * SHARE * report.load["capacity"])
    assert report.load["rate"] >= least > 0, report.load
    kinds = report.load["kinds"]
    assert kinds["GET /"]["answered"] > least
    for kind in ("POST /register/", "POST /login/", "GET /users/"):
        assert kinds[kind]["answered"] > 0, kind
    # Writes during the warm-up are checked too.
    assert report.load["writes"] >= kinds["POST /register/"]["answered"]
    assert report.hold is not None
    assert report.hold.parts == {}
    await assert_jobs_done_by_the_second(built, "rolling")


@pytest.mark.alone
async def test_stop_start_holds_and_does_not_refuse(built: Releases) -> None:
    async with enqueued_jobs(built, "stop-start"):
        report = await rehearse(
            built.repository,
            built.state,
            revision=built.second,
            strategy="stop-start",
            previous=built.first,
            environment="stop-start",
        )
    assert_no_problems(report)
    assert report.load is not None
    assert report.hold is not None
    print("load:", report.load, "hold:", report.hold)
    assert report.load["failed"] == 0, summary(report)
    assert report.load["lost"] == 0, summary(report)
    assert set(report.hold.parts) == {"stop", "start", "post_start", "deploy"}
    assert report.hold.waited > 0
    assert report.hold.longest <= report.hold.seconds + 1
    await assert_jobs_done_by_the_second(built, "stop-start")


async def assert_jobs_done_by_the_second(releases: Releases, environment: str) -> None:
    """The first release returned its running job to the queue; the other job was only enqueued."""
    before = log_of(releases, environment, "previous-worker")
    assert "slow job begun" in before
    assert "jobs requeued" in before
    assert "slow job done" not in before
    after = log_of(releases, environment, "app-worker")
    for line in ("slow job done", "new job done"):
        (event,) = [json.loads(each) for each in after.splitlines() if line in each]
        assert event["attempt"] == 1, after
    assert await query(releases, environment, LEFT) == []


async def test_failing_migration_is_reported_and_fixed_by_the_next_release(
    built: Releases,
) -> None:
    async def release(revision: str) -> Report:
        return await rehearse(
            built.repository, built.state, revision=revision, environment="failing"
        )

    assert_no_problems(await release(built.first))
    await query(built, "failing", ADA)
    before = await query(built, "failing", EVERYTHING)
    report = await release(built.broken)
    assert report.exit_code == 1
    (deploy,) = [finding for finding in errors(report) if finding.stage == "deploy"]
    assert "exit code 1" in deploy.message
    assert "division by zero" in deploy.excerpt
    assert "the platform continues" in deploy.consequence
    # Visitors see no traceback, and /readyz reports the reason.
    (seen,) = report.seen
    assert re.search(r"/login/ (200|503)", seen), seen
    assert '/readyz 503 {"' in seen, seen
    assert '"reason":"schema"' in seen.replace(" ", ""), seen
    assert not any("traceback" in finding.message for finding in report.findings), summary(report)

    assert (
        await query(built, "failing", EVERYTHING) == before
    )  # although the migration started with an UPDATE

    assert_no_problems(await release(built.second))
    (row,) = await query(built, "failing", "SELECT username, nickname FROM users")
    assert tuple(row) == ("ada", None)


async def test_code_can_be_rolled_back(releases: Releases) -> None:
    """The previous release serves the newer schema without migrating it."""
    for revision in (releases.second, releases.first):
        report = await rehearse(
            releases.repository, releases.state, revision=revision, environment="rolled"
        )
        assert_no_problems(report)
    (row,) = await query(releases, "rolled", "SELECT version_num FROM alembic_version")
    assert row["version_num"] == "00000000c0de"
    # A preview of the previous release is anonymized on that schema too.
    report = await rehearse(
        releases.repository,
        releases.state,
        revision=releases.first,
        environment="copy",
        environment_type="development",
        clone_of="rolled",
    )
    assert_no_problems(report)
    (row,) = await query(releases, "copy", "SELECT * FROM database_owner")
    assert row["type"] == "development"


async def test_break_options(releases: Releases) -> None:
    """Each --break option that depends on this application has the documented effect."""

    async def with_broken(step: str) -> Report:
        return await rehearse(
            releases.repository,
            releases.state,
            revision=releases.first,
            environment=f"broken-{step}",
            broken=step,
        )

    report = await with_broken("migration")
    assert [finding.stage for finding in errors(report)].count("deploy") == 1, summary(report)
    assert "the rehearsal makes this migration fail" in summary(report)

    report = await with_broken("publish")
    assert any("publish" in finding.excerpt for finding in errors(report)), summary(report)
    assert any("/static/" in finding.message for finding in errors(report)), summary(report)
    assert any("/readyz 200" in line for line in report.seen), report.seen  # it has migrated

    report = await with_broken("database")
    assert "/readyz 503" in report.seen[0], summary(report)
    assert not [finding for finding in errors(report) if finding.stage == "deploy"], summary(report)

    report = await with_broken("kill")
    assert any("was back after" in line for line in report.seen), summary(report)


async def test_preview_starts_with_a_copy(releases: Releases) -> None:
    production = await rehearse(
        releases.repository, releases.state, revision=releases.first, environment="original"
    )
    assert_no_problems(production)
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
    assert_no_problems(report)
    copy = releases.state / "environments" / "preview" / "mounts" / "static"
    assert (copy / "uploaded.txt").read_text() == "kept"
    # The copy has production's schema, so only the second migration has run.
    log = (releases.state / "environments" / "preview" / "logs" / "hooks.log").read_text()
    assert log.count("Running upgrade") == 1, log
