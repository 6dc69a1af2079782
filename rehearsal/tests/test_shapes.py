"""Rehearsals of projects with various configurations."""

import json
import os
from pathlib import Path

import pytest

from rehearsal.findings import Severity
from rehearsal.knowledge import DEFAULT_CPU, SIZES
from rehearsal.report import Report
from rehearsal.tests.sample import CONFIG, SERVE, commit, rehearse, sample, summary

PATHS = os.environ["PATH"].split(os.pathsep)
WITHOUT_NGINX = os.pathsep.join(path for path in PATHS if not Path(path, "nginx").exists())
YAML = ".upsun/config.yaml"

pytestmark = pytest.mark.requires("bwrap", "nginx")


def assert_no_problems(report: Report) -> None:
    assert report.exit_code == 0, summary(report)
    assert not [f for f in report.findings if f.severity is Severity.WARNING], summary(report)


async def test_unix_socket(tmp_path: Path) -> None:
    repository = sample(
        tmp_path / "repository",
        (YAML, "socket_family: tcp", "socket_family: unix"),
        (
            "serve.py",
            'server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)',
            "import socket\n"
            "Server.address_family = socket.AF_UNIX\n"
            "Server.server_bind = lambda self: self.socket.bind(self.server_address)\n"
            'server = Server(os.environ["SOCKET"], Handler)',
        ),
        ("serve.py", "        body = ", "        self.client_address = ('', 0)\n        body = "),
    )
    assert_no_problems(await rehearse(repository, tmp_path / "state"))


async def test_application_in_a_subdirectory(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name, text in {"backend/serve.py": SERVE, "backend/.environment": "export A=1\n"}.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    config = CONFIG.replace("    mounts:", '    source:\n      root: "/backend"\n    mounts:')
    commit(repository, {YAML: config})
    assert_no_problems(await rehearse(repository, tmp_path / "state"))


async def test_workers_crons_and_all_commands(tmp_path: Path) -> None:
    config = CONFIG.replace(
        "      commands:\n",
        "      commands:\n        pre_start: echo pre_start >public/pre_start\n"
        '        post_start: test -n "$PORT"\n',
    ).replace(
        "    hooks:\n",
        "    crons:\n      tidy:\n        spec: 'H * * * *'\n        commands:\n"
        '          start: echo "$GREETING" >public/cron\n'
        # Workers do not get PORT: with it, this one would exit and be reported.
        "    workers:\n      queue:\n        commands:\n"
        '          start: test -z "${PORT:-}" && exec sleep 600\n'
        "    hooks:\n      post_deploy: |\n        set -eu\n        date >public/post_deploy\n",
    )
    repository = sample(tmp_path / "repository", **{YAML: config})
    report = await rehearse(repository, tmp_path / "state")
    assert_no_problems(report)
    public = tmp_path / "state" / "environments" / "production" / "mounts" / "public"
    assert (public / "cron").read_text() == "hello\n"  # from `.environment`
    assert (public / "pre_start").exists()
    assert (public / "post_deploy").exists()
    stages = [stage.name for stage in report.stages]
    assert stages[stages.index("probe") :] == [
        *("probe", "post_deploy", "crons", "workers", "stop", "inspect")
    ]


async def test_worker_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rehearsal.instance.STOP_SECONDS", 1)
    worker = "trap '' TERM; while :; do echo busy; sleep 0.2; done"
    config = CONFIG.replace(
        "    hooks:\n",
        f'    workers:\n      queue:\n        commands:\n          start: "{worker}"\n    hooks:\n',
    )
    report = await rehearse(sample(tmp_path / "repository", **{YAML: config}), tmp_path / "state")
    (finding,) = report.findings
    assert finding.stage == "stop"
    assert "the worker queue" in finding.message
    assert "SIGTERM" in finding.message
    assert "busy" in finding.excerpt
    assert report.exit_code == 1


@pytest.mark.requires("redis-server")
@pytest.mark.parametrize("type_", ["redis:8.0", "valkey:8.1"])
async def test_memory_store(type_: str, tmp_path: Path) -> None:
    endpoint = type_.partition(":")[0]
    config = CONFIG.replace(
        "    mounts:", f'    relationships:\n      cache: "store:{endpoint}"\n    mounts:'
    ).replace("routes:", f'services:\n  store:\n    type: "{type_}"\nroutes:')
    # The deploy hook connects with the service variables.
    hook = (
        "python3 -c \"import os, socket; s = socket.create_connection((os.environ['CACHE_HOST'],"
        " int(os.environ['CACHE_PORT']))); s.sendall(b'PING\\\\r\\\\n');"
        " open('public/answer', 'wb').write(s.recv(64))\""
    )
    config = config.replace("cp -R built/. public/", f"cp -R built/. public/\n        {hook}")
    report = await rehearse(sample(tmp_path / "repository", **{YAML: config}), tmp_path / "state")
    assert_no_problems(report)
    public = tmp_path / "state" / "environments" / "production" / "mounts" / "public"
    assert (public / "answer").read_bytes() == b"+PONG\r\n"


async def test_container_knows_its_size(tmp_path: Path) -> None:
    config = CONFIG.replace("exec python3", "cat /run/config.json >public/limits; exec python3")
    repository = sample(tmp_path / "repository", **{YAML: config})
    assert_no_problems(await rehearse(repository, tmp_path / "state"))
    limits = tmp_path / "state" / "environments" / "production" / "mounts" / "public" / "limits"
    memory = SIZES["BALANCED"][DEFAULT_CPU]
    assert json.loads(limits.read_text()) == {"info": {"limits": {"cpu": 0.5, "memory": memory}}}


async def test_preview_has_its_own_variables(tmp_path: Path) -> None:
    changes = (
        YAML,
        "cp -R built/. public/",
        "cp -R built/. public/\n        env >public/environment",
    )
    repository = sample(tmp_path / "repository", changes)
    state = tmp_path / "state"
    assert_no_problems(await rehearse(repository, state))
    assert_no_problems(
        await rehearse(
            repository,
            state,
            environment="feature",
            environment_type="development",
            clone_of="production",
        )
    )

    def variables(environment: str) -> dict[str, str]:
        file = state / "environments" / environment / "mounts" / "public" / "environment"
        return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)

    production, preview = variables("production"), variables("feature")
    assert production["PLATFORM_ENVIRONMENT_TYPE"] == "production"
    assert preview["PLATFORM_ENVIRONMENT_TYPE"] == "development"
    assert (production["PLATFORM_BRANCH"], preview["PLATFORM_BRANCH"]) == ("main", "feature")
    # The entropy belongs to the project, the tree id to the commit.
    for name in ("PLATFORM_PROJECT_ENTROPY", "PLATFORM_TREE_ID"):
        assert production[name] == preview[name] != ""
    assert production["HOME"] == "/app"
    assert "PIP_USER" not in production


@pytest.mark.parametrize("ci", ["", "true"])
async def test_without_nginx(ci: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = sample(tmp_path / "repository")
    monkeypatch.setattr("rehearsal.front.PLACES", ("/nowhere",))
    monkeypatch.setenv("PATH", WITHOUT_NGINX)
    monkeypatch.setenv("CI", ci)
    report = await rehearse(repository, tmp_path / "state")
    (finding,) = [f for f in report.findings if "nginx" in f.message]
    assert "not tested" in finding.consequence
    assert finding.severity == (Severity.ERROR if ci else Severity.NOTE)
    assert report.exit_code == bool(ci), summary(report)


async def test_image_is_reused_for_the_same_tree(tmp_path: Path) -> None:
    repository = sample(tmp_path / "repository")
    first = await rehearse(repository, tmp_path / "state")
    commit(repository, {}, "The same tree again")
    second = await rehearse(repository, tmp_path / "state")
    third = await rehearse(repository, tmp_path / "state", rebuild=True)
    details = [
        next(stage.detail for stage in report.stages if stage.name == "build")
        for report in (first, second, third)
    ]
    assert ["reused" in detail for detail in details] == [False, True, False]
    assert json.dumps(first.document())
