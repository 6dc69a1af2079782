"""Projects on Upsun Fixed, formerly Platform.sh."""

from pathlib import Path

import pytest

from rehearsal.configuration import read
from rehearsal.findings import Severity
from rehearsal.tests.sample import SERVE, commit, rehearse, summary
from rehearsal.validation import validate

APPLICATION = """\
name: 'site'
type: 'python:3.13'
relationships:
    database: "db:postgresql"
web:
    commands:
        start: exec python3 serve.py
    locations:
        "/": {passthru: true}
disk: 512
mounts:
    'logs': {source: local, source_path: logs}
    'public': 'shared:files/public'
workers:
    queue: {size: S, disk: 1, commands: {start: sleep 60}}
crons:
    tidy: {spec: 'H * * * *', cmd: 'true'}
hooks:
    build: mkdir logs && rm -rf logs
    deploy: echo x >logs/deployed
"""
FILES = {
    ".platform.app.yaml": APPLICATION,
    ".platform/services.yaml": "db:\n    type: postgresql:16\n    disk: 1024\n",
    ".platform/routes.yaml": '"https://{default}/": {type: upstream, upstream: "site:http"}\n',
    "serve.py": SERVE,
}


def write(directory: Path, files: dict[str, str]) -> Path:
    commit(directory, files)
    return directory


def test_files_are_translated(tmp_path: Path) -> None:
    project = write(tmp_path, FILES)
    findings = validate(project, files=list(FILES)).findings
    assert [f for f in findings if f.severity is Severity.ERROR] == []
    (finding,) = [f for f in findings if "Upsun Fixed" in f.message]
    assert (finding.severity, finding.file) == (Severity.WARNING, ".platform.app.yaml")
    configuration = read(project)
    mounts = configuration.applications["site"].mounts
    assert [(m.source, m.source_path) for m in mounts.values()] == [
        ("storage", "logs"),
        ("storage", "public"),
    ]
    assert configuration.services["db"].type == "postgresql:16"
    assert configuration.routes["https://{default}/"].application == "site"
    line = configuration.place("applications", "site", "mounts", "logs").line
    assert "'logs'" in APPLICATION.splitlines()[line - 1]


@pytest.mark.parametrize("with_list", [False, True])
def test_several_applications(tmp_path: Path, with_list: bool) -> None:
    one = "type: python:3.13\nweb: {commands: {start: python3 a.py}}\n"
    if with_list:
        files = {
            ".platform/applications.yaml": "- name: api\n  type: python:3.13\n"
            "  source: {root: api}\n- name: web\n  tpye: x\n  type: python:3.13\n"
        }
    else:
        files = {
            "api/.platform.app.yaml": f"name: api\n{one}",
            "web/.platform.app.yaml": f"name: web\ntpye: x\n{one}",
        }
    project = write(tmp_path, files)
    assert {
        name: application.directory for name, application in read(project).applications.items()
    } == {"api": "api", "web": "" if with_list else "web"}
    (error,) = [
        f for f in validate(project, files=list(files)).findings if f.severity is Severity.ERROR
    ]
    assert error.message == "applications.web.tpye is an unknown key"
    assert "tpye" in files[error.file].splitlines()[error.line - 1]


@pytest.mark.requires("bwrap", "nginx")
async def test_rehearsal(tmp_path: Path) -> None:
    report = await rehearse(write(tmp_path / "repository", FILES), tmp_path / "state")
    assert report.exit_code == 0, summary(report)
    mounts = tmp_path / "state" / "environments" / "production" / "mounts"
    assert (mounts / "logs" / "deployed").read_text() == "x\n"
