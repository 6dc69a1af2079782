"""The commands of the Makefile, run in a clone."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url

from app.settings import ROOT
from embedded_postgres import postgres
from quart_upsun.testing.programs import require
from tests.development.clone import (
    assert_nothing_left,
    environment,
    free_port,
    processes_in,
    running,
    share_packages,
)
from tests.migrations.recipes import head
from tests.repository import checkout

SERVER = (".venv/bin/python", "-m", "development")


@pytest.fixture
def bare_clone(tmp_path: Path) -> Path:
    """A clone without installed packages."""
    return checkout(tmp_path / "a clone")


@pytest.fixture
def clone(bare_clone: Path) -> Iterator[Path]:
    """A clone with installed packages, and nothing else set up."""
    require("node")
    share_packages(bare_clone)
    yield bare_clone
    for process in processes_in(bare_clone):
        process.kill()


def fetch(port: str, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=30)


def make(clone: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=clone,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def messages(output: str) -> list[str]:
    """Return the lines of the output without those of make itself."""
    return [line for line in output.splitlines() if not line.startswith("make: ")]


def write_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_help_lists_every_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    commands = {name for name in phony[1].split() if not name.endswith("-packages")}
    listed = re.findall(r"^  make ([\w-]+) +\w", make(ROOT, "help").stdout, re.MULTILINE)
    assert sorted(listed) == sorted(commands)
    assert make(ROOT).stdout == make(ROOT, "help").stdout


async def execute(url: str, statement: str) -> str:
    """Run a statement in the database of `make run`; return the command tag."""
    connection = await asyncpg.connect(make_url(url).set(database="app").render_as_string(False))
    try:
        return str(await connection.execute(statement))
    finally:
        await connection.close()


async def test_run_serves_and_leaves_only_data_behind(clone: Path) -> None:
    with running(clone, "make", "run") as run:
        run.wait_for(f"Serving on http://127.0.0.1:{run.port} ")
        page = fetch(run.port, "/")
        assert page.status_code == 200
        style = re.search(r'"(/static/[^"]+\.css)"', page.text)
        assert style
        assert fetch(run.port, style[1]).status_code == 200
        with postgres(clone / ".data" / "postgres") as url:
            await execute(url, "CREATE TABLE kept ()")
        # make re-raises the signal, and reports no error.
        assert run.interrupt() == -signal.SIGINT
        assert not re.search("make: |Traceback", run.output), run.output
        assert_nothing_left(clone)

    with running(clone, "make", "run") as first, running(clone, "make", "run") as second:
        second.wait_for(f"Serving on http://127.0.0.1:{second.port} ")
        first.wait_for(f"Serving on http://127.0.0.1:{first.port} ")
        assert "Running upgrade" not in first.output + second.output
        first.interrupt()
        assert fetch(second.port, "/readyz").status_code == 200
        with postgres(clone / ".data" / "postgres") as url:
            assert await execute(url, "SELECT FROM kept") == "SELECT 0"
        second.interrupt()
        assert_nothing_left(clone)


async def test_background_commands_can_be_interrupted(clone: Path) -> None:
    """A shell without job control starts background jobs with SIGINT ignored."""
    script = (
        "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "sys.exit(pytest.main(['-q', '-p', 'no:randomly',"
        " 'tests/development/test_make.py::test_run_uses_and_migrates_database_url']))"
    )
    with running(ROOT, sys.executable, "-c", script) as run:
        assert run.wait() == 0, run.output


def test_run_reloads_after_changes(clone: Path) -> None:
    with running(clone, *SERVER) as run:
        run.wait_for("Serving on ")
        template = clone / "app" / "templates" / "public" / "about.html"
        template.write_text(template.read_text().replace("</h1>", ", edited</h1>", 1))
        run.wait_for("Serving on ", times=2)
        assert ", edited</h1>" in fetch(run.port, "/about/").text

        views = clone / "app" / "public" / "views.py"
        correct = views.read_text()
        views.write_text(f"{correct}\n!")
        run.wait_for("The server exited with code 1; waiting for changes")
        views.write_text(correct)
        run.wait_for("Serving on ", times=3)

        style = clone / "assets" / "css" / "main.scss"
        style.write_text(style.read_text() + "\n.edited { color: red }\n")
        run.wait_for("Changed: app/manifest.json")
        run.wait_for("Serving on ", times=4)
        sheet = re.search(r'"(/static/[^"]+\.css)"', fetch(run.port, "/").text)
        assert sheet
        assert ".edited" in fetch(run.port, sheet[1]).text

        versions = clone / "alembic" / "versions"
        newest = head()
        (versions / "20990101_abc_more.py").write_text(
            "from alembic import op\n"
            f"revision, down_revision, branch_labels, depends_on = 'abc', '{newest}', None, None\n"
            "def upgrade(): op.execute('CREATE TABLE more ()')\n"
            "def downgrade(): op.execute('DROP TABLE more')\n"
        )
        run.wait_for(f"Running upgrade {newest} -> abc")
        run.wait_for("Serving on ", times=5)

        assert run.interrupt() == 0
        assert_nothing_left(clone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_run_stops_gracefully_on_sigterm_and_sighup(clone: Path, number: signal.Signals) -> None:
    with running(clone, *SERVER) as run:
        run.wait_for("PostgreSQL is running")  # during setup
        run.process.send_signal(number)
        assert run.wait() == 0
        assert "Traceback" not in run.output
        assert_nothing_left(clone)


def test_second_signal_forces_stop(clone: Path) -> None:
    with running(clone, *SERVER) as run:
        run.wait_for("Serving on ")
        (server,) = (
            process
            for process in processes_in(clone)
            if process.cmdline()[1:] == ["-m", "app.server"]
        )
        server.suspend()  # it cannot handle SIGTERM
        run.process.send_signal(signal.SIGINT)
        run.wait_for("Stopping")
        assert server.is_running()
        run.process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert run.wait() == 0
        assert time.monotonic() - begun < 10  # the grace period is 12 seconds
        assert_nothing_left(clone)


def test_run_reports_a_server_left_by_a_killed_run(clone: Path) -> None:
    with running(clone, *SERVER) as run:
        run.wait_for("Serving on ")
        run.process.kill()
        run.process.wait()
        deadline = time.monotonic() + 20
        while len(left := processes_in(clone)) > 1:  # the others exit by themselves
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        again = make(clone, "run", PORT=run.port)
        assert again.returncode != 0
        (sentence,) = messages(again.stdout)
        assert f"Port {run.port} is already in use" in sentence
        assert "that was killed" in sentence
        left[0].kill()


def test_run_rejects_a_port_in_use(clone: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = make(clone, "run", PORT=port)
    assert result.returncode != 0
    (sentence,) = messages(result.stdout)
    assert f"Port {port} is already in use" in sentence
    assert "PORT=8000 make run" in sentence
    assert not (clone / ".data").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PORT": "http"}, "PORT must be a number from 1 to 65535, got 'http'."),
        ({"PORT": "65536"}, "PORT must be a number from 1 to 65535, got '65536'."),
        ({"HOST": "no.such.host.invalid"}, "no.such.host.invalid"),
        ({"DATABASE_URL": "sqlite:///app.db"}, "DATABASE_URL"),
        ({"DATABASE_URL": "what?"}, "DATABASE_URL"),
        (
            {"DATABASE_URL": "postgresql://me:hidden@127.0.0.1:1/some"},
            "Cannot connect to the database 'some' at 127.0.0.1:1 (from DATABASE_URL):"
            " Connection refused.",
        ),
    ],
)
def test_run_reports_an_invalid_variable(
    clone: Path, variables: dict[str, str], expected: str
) -> None:
    result = make(clone, "run", **{"PORT": free_port(), **variables})
    assert result.returncode != 0
    (sentence,) = messages(result.stdout)
    assert expected in sentence
    assert "hidden" not in sentence
    assert not (clone / ".data").exists()


def test_run_reports_a_rejected_password(clone: Path, server_url: str) -> None:
    url = make_url(server_url).set(password="hidden").render_as_string(False)
    result = make(clone, "run", PORT=free_port(), DATABASE_URL=url)
    assert result.returncode != 0
    (sentence,) = messages(result.stdout)
    assert "password authentication failed" in sentence
    assert "hidden" not in sentence


def test_run_uses_and_migrates_database_url(clone: Path, empty_database: str) -> None:
    with running(clone, *SERVER, DATABASE_URL=empty_database) as run:
        run.wait_for("Serving on ")
        assert "Running upgrade" in run.output
        assert not (clone / ".data" / "postgres").exists()
        assert run.interrupt() == 0
        assert_nothing_left(clone)


async def test_run_does_not_change_a_database_of_another_environment(
    clone: Path, database_url: str
) -> None:
    """For instance production's through a tunnel: no migrations, jobs or schedules run."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("UPDATE database_owner SET environment = 'main-bvxea6i'")
        await connection.execute(
            "INSERT INTO pgqueuer (priority, status, entrypoint, payload)"
            " VALUES (0, 'queued', 'mail', '{}')"
        )
        with running(clone, *SERVER, DATABASE_URL=database_url) as run:
            await asyncio.to_thread(run.wait_for, "Serving on ")
            await asyncio.to_thread(run.wait_for, "jobs paused")
            assert "Migrations and jobs are disabled: " in run.output
            assert "DATABASE_ENVIRONMENT=main-bvxea6i" in run.output
            assert "alembic" not in run.output.replace("`alembic upgrade head`", "")
            assert run.interrupt() == 0
        jobs = await connection.fetch("SELECT status, attempts FROM pgqueuer")
        assert [tuple(job) for job in jobs] == [("queued", 0)]
        assert await connection.fetchval("SELECT count(*) FROM pgqueuer_schedules") == 0
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("file", "broken", "expected"),
    [
        ("assets/css/main.scss", "{", "The asset build failed;"),
        ("alembic/env.py", "!", "The migration failed;"),
        ("app/server.py", "!", "The server is not ready;"),
    ],
)
def test_run_reports_the_step_that_failed(
    clone: Path, file: str, broken: str, expected: str
) -> None:
    (clone / file).write_text(broken)
    with running(clone, *SERVER) as run:
        assert run.wait() == 1
        assert run.output.splitlines()[-1].startswith(expected)
        assert_nothing_left(clone)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("version", [None, "18.20.4"])
def test_run_requires_a_recent_node(clone: Path, version: str | None, installed: bool) -> None:
    if not installed:
        (clone / "node_modules").unlink()
    programs = clone.parent / "programs"
    for name in ("sh", "make", "cmp", "cp", "find", "npm"):
        found = shutil.which(name)
        assert found, name
        write_program(programs / name, f'exec {found} "$@"')
    if version:
        write_program(programs / "node", f"echo v{version}")
    result = make(clone, "run", PATH=str(programs), PORT=free_port())
    assert result.returncode != 0
    (sentence,) = messages(result.stdout)
    assert (version or "not installed") in sentence
    assert "Node 20 or later" in sentence
    assert not (clone / ".data").exists()


@pytest.mark.parametrize("version", ["2.7.18", "3.6.15", "3.10.13"])
def test_run_rejects_an_old_python(bare_clone: Path, version: str) -> None:
    python = write_program(bare_clone.parent / "python3", f"echo {version}")
    result = make(bare_clone, "run", PYTHON=str(python))
    assert result.returncode != 0
    (sentence,) = messages(result.stdout)
    assert "Python 3.11 or later is required" in sentence
    assert f"is {version}" in sentence


def test_run_reports_a_missing_python(bare_clone: Path) -> None:
    result = make(bare_clone, "run", PYTHON="python3.99")
    assert result.returncode != 0
    (sentence,) = messages(result.stdout)
    assert "python3.99 is not installed" in sentence


def write_python(path: Path, version: str, *, pip_fails: bool = False) -> Path:
    """Write a fake Python that prints its version, and the commands that it receives."""
    return write_program(
        path,
        f"""
case "$1 $2" in
    *version_info*) echo {version} ;;
    *_base_executable*) cat "${{0%/*}}/../base" ;;
    '-m venv') echo "venv $0"; rm -rf "$4"; mkdir -p "$4/bin"; echo "$0" >"$4/base"
               cp "$0" "$4/bin/python" ;;
    '-m pip') echo pip; {"kill -INT $PPID; exit 1" if pip_fails else ":"} ;;
esac""",
    )


def test_python_packages_are_installed_when_needed(bare_clone: Path) -> None:
    """Once, and again after an interruption, a new lock file or another interpreter."""

    def steps(**variables: str) -> list[str]:
        output = make(bare_clone, "python-packages", **variables).stdout
        return [line for line in output.splitlines() if re.match("venv|pip", line)]

    python = bare_clone.parent / "python3.12"
    named = {"PYTHON": str(python)}
    write_python(python, "3.12.1", pip_fails=True)
    assert steps(**named) == [f"venv {python}", "pip"]
    write_python(python, "3.12.1")
    assert steps(**named) == [f"venv {python}", "pip"]
    assert steps(**named) == []
    assert steps() == []  # PYTHON is not set

    with (bare_clone / "requirements-dev.txt").open("a") as lock:
        lock.write("# changed\n")
    assert steps() == [f"venv {python}", "pip"]  # the interpreter of the previous environment
    assert steps() == []

    other = write_python(bare_clone.parent / "python3.13", "3.13.0")
    assert steps(PYTHON=str(other)) == [f"venv {other}", "pip"]
    assert steps(PYTHON=str(other)) == []
    assert steps(PYTHON=str(other), VENV=".other") == [f"venv {other}", "pip"]


def test_npm_packages_are_reinstalled_after_an_interruption(bare_clone: Path) -> None:
    programs = bare_clone.parent / "programs"
    write_program(programs / "node", "echo v20.1.0")
    path = f"{programs}:{os.environ['PATH']}"

    def installs() -> bool:
        return "Installing" in make(bare_clone, "npm-packages", PATH=path).stdout

    write_program(programs / "npm", "mkdir -p node_modules; exit 1")
    assert installs()
    write_program(programs / "npm", "mkdir -p node_modules")
    assert installs()
    assert not installs()
    with (bare_clone / "package-lock.json").open("a") as lock:
        lock.write("\n")
    assert installs()


def test_migration_is_generated_from_the_models(clone: Path) -> None:
    result = make(clone, "migration")
    assert result.returncode != 0
    (sentence,) = messages(result.stdout)
    assert 'make migration m="add a column"' in sentence

    models = clone / "app" / "user" / "models.py"
    before = models.read_text()
    models.write_text(
        before + "\n\nclass Pet(Base):\n"
        '    __tablename__ = "pets"\n\n'
        "    id: Mapped[int] = mapped_column(primary_key=True)\n"
    )
    result = make(clone, "migration", 'm=A user\'s "pets"')
    assert result.returncode == 0, result.stdout
    (written,) = (clone / "alembic" / "versions").glob("*_a_user_s_pets.py")
    assert "create_table" in written.read_text()
    assert_ruff_accepts(clone, written)
    # What the linter of the SQL rejects is said at once, with the recipe.
    assert "docs/migrations.md#create-a-table" in result.stdout
    assert "Edit the migration as the recipes show" in result.stdout
    assert_nothing_left(clone)

    # With an identity, and with long names and texts, `make lint` accepts it as it is.
    written.unlink()
    shutil.rmtree(clone / ".data")
    column = f"a_column_with_a_name_of_{'m' * 36}"
    models.write_text(
        before + "\n\nclass Pet(Base):\n"
        '    __tablename__ = "pets"\n'
        f'    __table_args__ = (CheckConstraint("{column} <> \'{"x" * 80}\'", name="long"),)\n\n'
        "    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)\n"
        f"    {column}: Mapped[str] = mapped_column(String(40), index=True)\n"
    )
    models.write_text(
        models.read_text().replace("import BigInteger,", "import BigInteger, CheckConstraint,")
    )
    result = make(clone, "migration", f"m=Pets with {'a long description of them ' * 6}")
    assert result.returncode == 0, result.stdout
    assert "Edit the migration" not in result.stdout
    (written,) = (clone / "alembic" / "versions").glob("*_pets_with_*.py")
    assert_ruff_accepts(clone, written)


def assert_ruff_accepts(clone: Path, written: Path) -> None:
    for check in (("check",), ("format", "--check")):
        subprocess.run([sys.executable, "-m", "ruff", *check, str(written)], cwd=clone, check=True)


def test_format_fixes_what_it_can_and_reports_the_rest(clone: Path) -> None:
    """What cannot be fixed, such as a long comment, does not keep the rest from being formatted."""
    module = clone / "app" / "untidy.py"
    module.write_text(f'"""Untidy."""\nimport sys\nimport os\nprint( os,sys )\n# {"x" * 100}\n')
    result = make(clone, "format")
    assert result.returncode != 0
    assert "E501" in result.stdout
    assert "import os\nimport sys\n\nprint(os, sys)" in module.read_text()


def test_command_receives_database_url_and_sets_the_exit_code(clone: Path) -> None:
    with running(clone, *SERVER, "sh", "-c", 'echo "url: $DATABASE_URL"; exit 7') as run:
        assert run.wait() == 7
        assert re.search(r"url: postgresql://.*@127\.0\.0\.1:\d+/app$", run.output, re.MULTILINE)
    with running(clone, *SERVER, "no-such-command") as run:
        assert run.wait() == 1
        assert "Cannot run no-such-command: No such file or directory." in run.output
    assert_nothing_left(clone)


def test_clean_keeps_packages_and_data(clone: Path) -> None:
    cached = (
        *("app/user/__pycache__/x.pyc", "rehearsal/checks/__pycache__/x.pyc"),
        *("benchmarks/__pycache__/x.pyc", ".hypothesis/x", ".mypy_cache/x"),
    )
    for name in (".data/x", "app/static/x", "app/manifest.json", *cached):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    gone = {"build", ".hypothesis", ".mypy_cache"}
    before = {path for path in clone.iterdir() if path.name not in gone}
    assert make(clone, "clean").returncode == 0
    assert set(clone.iterdir()) == before
    assert [name for name in cached if (clone / name).exists()] == []
    assert not (clone / "app" / "static").exists()
    assert (clone / ".data" / "x").exists()
