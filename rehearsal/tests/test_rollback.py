"""`--rollback`: an earlier release on the schema of a later one, under load."""

import sys
from pathlib import Path

import pytest

from rehearsal.tests.sample import SERVE, commit, errors, rehearse, sample, summary
from rehearsal.tests.test_restore import CHANGE, WITH_DATABASE, YAML

STATEMENT = "DELETE FROM people WHERE name IS NULL"
# Answers with a query, as an application whose code depends on the schema.
READER = SERVE.replace(
    "        found =",
    "        import subprocess\n"
    f"        query = [{sys.executable!r}, 'change.py', {STATEMENT!r}]\n"
    "        broken = subprocess.run(query, capture_output=True).returncode\n"
    "        found =",
).replace("200 if found else 404", "500 if broken else 200 if found else 404")
PROJECT = '[tool.rehearsal]\npages = ["/"]\nready = "/ready"\nrate = 2\n'


def hook(statement: str) -> str:
    return WITH_DATABASE.replace(
        "        cp -R built/. public/\n",
        f"        cp -R built/. public/\n        \"{sys.executable}\" change.py '{statement}'\n",
    )


def two_releases(directory: Path, migration: str) -> Path:
    """Create a repository whose last commit migrates the database, and does not query it."""
    created = hook("CREATE TABLE IF NOT EXISTS people (name text)")
    files = {YAML: created, "change.py": CHANGE, "serve.py": READER, "pyproject.toml": PROJECT}
    repository = sample(directory, **files)
    first = "CREATE TABLE IF NOT EXISTS people (name text); "
    commit(repository, {YAML: hook(first + migration), "serve.py": SERVE})
    return repository


async def test_rollback_to_code_that_works_on_the_new_schema(tmp_path: Path) -> None:
    repository = two_releases(tmp_path / "repository", "ALTER TABLE people ADD mail text")
    report = await rehearse(repository, tmp_path / "state", isolated=False, rollback="HEAD~1")
    assert not errors(report), summary(report)
    names = [stage.name for stage in report.stages]
    assert names.index("deploy") < names.index("rollback: stop") < names.index("rollback: deploy")
    assert report.previous.startswith("HEAD~1")
    assert report.load is not None
    assert report.load["requests"] > 0
    assert [line for line in report.seen if line.startswith("After the rollback: / 200")]


async def test_rollback_to_code_that_needs_a_dropped_column_fails(tmp_path: Path) -> None:
    repository = two_releases(
        tmp_path / "repository", "ALTER TABLE people RENAME name TO full_name"
    )
    report = await rehearse(repository, tmp_path / "state", isolated=False, rollback="HEAD~1")
    assert report.exit_code == 1, summary(report)
    assert "500" in next(line for line in report.seen if line.startswith("After the rollback"))
    assert [finding for finding in errors(report) if finding.stage in {"load", "probe"}]


@pytest.mark.parametrize("broken", ["exit 3", "exec false"])
async def test_release_that_does_not_deploy_cannot_be_rolled_back(
    broken: str, tmp_path: Path
) -> None:
    repository = sample(tmp_path / "repository")
    config = (repository / YAML).read_text().replace("cp -R built/. public/", broken)
    commit(repository, {YAML: config})
    report = await rehearse(repository, tmp_path / "state", isolated=False, rollback="HEAD~1")
    assert report.exit_code == 1
    assert "rollback: deploy" not in [stage.name for stage in report.stages]
    assert [finding for finding in errors(report) if finding.stage == "deploy"]
