"""Crons, operations, source operations and tasks that --run names."""

from pathlib import Path

import pytest

from rehearsal.configuration import parse
from rehearsal.on_demand import available
from rehearsal.report import Report
from rehearsal.scene import Chosen
from rehearsal.services import ServiceError
from rehearsal.tests.sample import CONFIG, errors, git, rehearse, sample, summary

YAML = ".upsun/config.yaml"
WITH_COMMANDS = CONFIG.replace(
    "    hooks:\n",
    """\
    source:
      operations:
        update:
          command: |
            set -e
            date >updated; git add updated; git commit --quiet -m "Update a file"
            touch forgotten
    crons:
      backup:
        spec: 'H 3 * * *'
        commands:
          start: echo "$GREETING, backup"
    operations:
      clear:
        role: admin
        commands:
          start: echo cleared >public/cleared
      break:
        commands:
          start: echo "no cache"; exit 3
    hooks:
""",
).replace(
    "routes:",
    """\
tasks:
  report:
    type: "python:3.13"
    source:
      root: reports
    relationships:
      web: "web:http"
    mounts:
      public:
        source: storage
        service: web
        source_path: public
    hooks:
      build: echo built >result
    run:
      command: |
        cat result public/cleared
        curl --silent "http://$WEB_HOST/ready"
      timeout: 60
routes:""",
)

pytestmark = pytest.mark.requires("bwrap", "nginx", "curl")


def stage(report: Report, name: str) -> str:
    """Return the detail of a stage."""
    (found,) = [stage for stage in report.stages if stage.name == name]
    return found.detail


async def test_chosen_commands_run_after_the_deploy(tmp_path: Path) -> None:
    repository = sample(
        tmp_path / "repository", **{YAML: WITH_COMMANDS, "reports/README": "Reports\n"}
    )
    before = git(repository, "rev-parse", "HEAD")
    runs = tuple(
        Chosen(*text.split(":"))
        for text in ("cron:backup", "operation:clear", "source-operation:update", "task:report")
    )
    report = await rehearse(repository, tmp_path / "state", runs=runs)
    assert report.exit_code == 0, summary(report)
    assert stage(report, "cron backup") == "hello, backup"
    assert stage(report, "operation clear") == "no output"
    assert stage(report, "source-operation update") == "1 commit, updated"
    assert "Hello" in stage(report, "report: task report")
    assert "crons" not in [stage.name for stage in report.stages]
    (finding,) = [finding for finding in report.findings if "does not commit" in finding.message]
    assert "forgotten" in finding.excerpt
    assert git(repository, "rev-parse", "HEAD") == before

    report = await rehearse(repository, tmp_path / "state", runs=(Chosen("operation", "break"),))
    (error,) = errors(report)
    assert "the operation break failed with exit code 3" in error.message
    lines = WITH_COMMANDS.splitlines()
    assert lines[error.line - 1].strip() == "break:"
    assert error.excerpt == "no cache"


async def test_unknown_command_is_rejected(tmp_path: Path) -> None:
    repository = sample(tmp_path / "repository", **{YAML: WITH_COMMANDS})
    with pytest.raises(ServiceError, match=r"no cron missing.*has: backup\."):
        await rehearse(repository, tmp_path / "state", runs=(Chosen("cron", "missing"),))


def test_available_commands() -> None:
    configuration = parse(WITH_COMMANDS)
    assert available(configuration, "operation") == ["clear", "break"]
    assert available(configuration, "task") == ["report"]
