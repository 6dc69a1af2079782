"""Rehearsals of several applications, which use each other and share files."""

from pathlib import Path

import pytest

from rehearsal.report import Report
from rehearsal.tests.sample import SERVE, commit, errors, rehearse, sample, summary

YAML = ".upsun/config.yaml"
CONFIG = """\
applications:
  web:
    type: python:3.13
    container_profile: BALANCED
    source:
      root: web
    relationships:
      api: "api:http"
    mounts:
      shared:
        source: storage
        service: api
        source_path: files
      public:
        source: storage
    web:
      commands:
        start: exec python3 serve.py
      locations:
        "/":
          passthru: true
    hooks:
      deploy: |
        set -eu
        # Without a port, as documented.
        curl --silent --fail "http://$API_HOST/" >public/answer
        cat shared/greeting >>public/answer
  api:
    type: python:3.13
    container_profile: BALANCED
    source:
      root: api
    mounts:
      files:
        source: storage
    web:
      commands:
        start: exec python3 serve.py
      locations:
        "/":
          passthru: true
    hooks:
      deploy: echo "from the API" >files/greeting
  other:
    type: python:3.13
    container_profile: BALANCED
    source:
      root: api
    web:
      commands:
        start: exec python3 serve.py
      locations:
        "/":
          passthru: true
routes:
  "https://{default}/":
    type: upstream
    upstream: "web:http"
  "https://api.{default}/":
    type: upstream
    upstream: "api:http"
"""
HELLO = "<p>Hello"
API = SERVE.replace(HELLO, "<p>I am the API")

pytestmark = pytest.mark.requires("bwrap", "nginx", "curl")


def project(directory: Path, *, api: str = API) -> Path:
    style = '<link rel="stylesheet" href="/public/style-0123abcd.css">'
    files = {"web/serve.py": SERVE, "api/serve.py": api}
    directory.mkdir()
    commit(
        directory, {YAML: CONFIG} | {name: text.replace(style, "") for name, text in files.items()}
    )
    return directory


def stages(report: Report) -> list[str]:
    return [stage.name for stage in report.stages]


async def test_applications_use_each_other(tmp_path: Path) -> None:
    repository, state = project(tmp_path / "repository"), tmp_path / "state"
    report = await rehearse(repository, state)
    assert report.exit_code == 0, summary(report)
    mounts = state / "environments" / "production" / "mounts"
    assert (mounts / "@web" / "public" / "answer").read_text() == "<p>I am the APIfrom the API\n"
    names = stages(report)
    assert names.index("api: deploy") < names.index("deploy")
    assert names.index("stop") < names.index("api: stop")
    assert "other: start" in names
    (probe,) = [stage for stage in report.stages if stage.name == "api: probe"]
    assert "/ 200" in probe.detail

    # Only the chosen application and those that it needs.
    report = await rehearse(repository, state, application="web")
    assert "api: build" in stages(report)
    assert "other: build" not in stages(report)


async def test_failure_names_its_application(tmp_path: Path) -> None:
    broken = API.replace("import http", "raise SystemExit('no API')\nimport http")
    report = await rehearse(project(tmp_path / "repository", api=broken), tmp_path / "state")
    found = {finding.stage: finding for finding in errors(report)}
    assert "api: restart" in found, summary(report)
    assert "no API" in found["api: restart"].excerpt, summary(report)
    assert "exit code" in found["deploy"].message
    assert report.exit_code == 1


@pytest.mark.parametrize("source", ["storage", "instance"])
async def test_instances_share_storage_only(source: str, tmp_path: Path) -> None:
    """A file that the deploy hook has published to a local mount is missing in other instances."""
    change = ("source: storage", f"source: {source}")
    repository = sample(tmp_path / "repository", (YAML, *change))
    report = await rehearse(repository, tmp_path / "state", instances=2)
    found = [(finding.stage, finding.message) for finding in errors(report)]
    if source == "storage":
        assert found == [], summary(report)
        assert "probe 2" in stages(report)
    else:
        assert {stage for stage, _ in found} == {"probe 2"}, summary(report)
        assert "style-0123abcd.css" in found[0][1]
