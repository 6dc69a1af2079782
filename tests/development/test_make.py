"""The verbs of the Makefile, run in a clone."""

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
    left_in,
    running,
    share_packages,
)
from tests.migrations.recipes import head
from tests.repository import checkout

SERVER = (".venv/bin/python", "-m", "development")


@pytest.fixture
def bare_clone(tmp_path: Path) -> Path:
    """A clone in which nothing is installed."""
    return checkout(tmp_path / "a clone")


@pytest.fixture
def clone(bare_clone: Path) -> Iterator[Path]:
    """A clone in which the packages are installed, and nothing else is set up."""
    require("node")
    share_packages(bare_clone)
    yield bare_clone
    for process in left_in(bare_clone):
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


def said(output: str) -> list[str]:
    """Return the lines that are not make's own."""
    return [line for line in output.splitlines() if not line.startswith("make: ")]


def write_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_help_lists_every_verb() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    verbs = {name for name in phony[1].split() if not name.endswith("-packages")}
    listed = re.findall(r"^  make ([\w-]+) +\w", make(ROOT, "help").stdout, re.MULTILINE)
    assert sorted(listed) == sorted(verbs)
    assert make(ROOT).stdout == make(ROOT, "help").stdout


async def execute(url: str, statement: str) -> str:
    """Run a statement in the database that `make run` uses."""
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
        # Like every make, this one dies of the signal itself. It has no error to report.
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


async def test_what_runs_in_the_background_can_be_interrupted(clone: Path) -> None:
    """A shell without job control starts it with SIGINT ignored, as `nohup make test &` does."""
    script = (
        "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "sys.exit(pytest.main(['-q', '-p', 'no:randomly',"
        " 'tests/development/test_make.py::test_a_database_of_ones_own']))"
    )
    with running(ROOT, sys.executable, "-c", script) as run:
        assert run.wait() == 0, run.output


def test_changes_are_served_without_a_restart_by_hand(clone: Path) -> None:
    with running(clone, *SERVER) as run:
        run.wait_for("Serving on ")
        template = clone / "app" / "templates" / "public" / "about.html"
        template.write_text(template.read_text().replace("</h1>", ", by hand</h1>", 1))
        run.wait_for("Serving on ", times=2)
        assert ", by hand</h1>" in fetch(run.port, "/about/").text

        views = clone / "app" / "public" / "views.py"
        correct = views.read_text()
        views.write_text(f"{correct}\n!")
        run.wait_for("The server ended with exit code 1; waiting for a change")
        views.write_text(correct)
        run.wait_for("Serving on ", times=3)

        style = clone / "assets" / "css" / "main.scss"
        style.write_text(style.read_text() + "\n.by-hand { color: red }\n")
        run.wait_for("Changed: app/manifest.json")
        run.wait_for("Serving on ", times=4)
        sheet = re.search(r'"(/static/[^"]+\.css)"', fetch(run.port, "/").text)
        assert sheet
        assert ".by-hand" in fetch(run.port, sheet[1]).text

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
def test_other_signals_end_it_in_order_too(clone: Path, number: signal.Signals) -> None:
    with running(clone, *SERVER) as run:
        run.wait_for("PostgreSQL is running")  # in the middle of the set-up
        run.process.send_signal(number)
        assert run.wait() == 0
        assert "Traceback" not in run.output
        assert_nothing_left(clone)


def test_a_second_signal_hurries(clone: Path) -> None:
    with running(clone, *SERVER) as run:
        run.wait_for("Serving on ")
        (server,) = (
            process for process in left_in(clone) if process.cmdline()[1:] == ["-m", "app.server"]
        )
        server.suspend()  # it will not answer to SIGTERM
        run.process.send_signal(signal.SIGINT)
        run.wait_for("Stopping")
        assert server.is_running()
        run.process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert run.wait() == 0
        assert time.monotonic() - begun < 10  # without the hurry it is 12 seconds
        assert_nothing_left(clone)


def test_what_a_kill_leaves_is_named_by_the_next_start(clone: Path) -> None:
    with running(clone, *SERVER) as run:
        run.wait_for("Serving on ")
        run.process.kill()
        run.process.wait()
        deadline = time.monotonic() + 20
        while len(left := left_in(clone)) > 1:  # the build and PostgreSQL notice, and end
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        again = make(clone, "run", PORT=run.port)
        assert again.returncode != 0
        (sentence,) = said(again.stdout)
        assert f"Port {run.port} is taken" in sentence
        assert "that was killed" in sentence
        left[0].kill()


def test_a_taken_port(clone: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = make(clone, "run", PORT=port)
    assert result.returncode != 0
    (sentence,) = said(result.stdout)
    assert f"Port {port} is taken" in sentence
    assert "PORT=8000 make run" in sentence
    assert not (clone / ".data").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PORT": "http"}, "PORT must be a number from 1 to 65535, not 'http'."),
        ({"PORT": "65536"}, "PORT must be a number from 1 to 65535, not '65536'."),
        ({"HOST": "no.such.host.invalid"}, "no.such.host.invalid"),
        ({"DATABASE_URL": "sqlite:///app.db"}, "DATABASE_URL must start with postgresql://"),
        ({"DATABASE_URL": "what?"}, "DATABASE_URL is malformed. Use postgresql://"),
        (
            {"DATABASE_URL": "postgresql://me:hidden@127.0.0.1:1/some"},
            "DATABASE_URL names the database 'some' at 127.0.0.1:1, which cannot be reached:"
            " Connection refused.",
        ),
    ],
)
def test_a_wrong_variable(clone: Path, variables: dict[str, str], expected: str) -> None:
    result = make(clone, "run", **{"PORT": free_port(), **variables})
    assert result.returncode != 0
    (sentence,) = said(result.stdout)
    assert expected in sentence
    assert "hidden" not in sentence
    assert not (clone / ".data").exists()


def test_a_database_that_refuses_the_password(clone: Path, server_url: str) -> None:
    url = make_url(server_url).set(password="hidden").render_as_string(False)
    result = make(clone, "run", PORT=free_port(), DATABASE_URL=url)
    assert result.returncode != 0
    (sentence,) = said(result.stdout)
    assert "password authentication failed" in sentence
    assert "hidden" not in sentence


def test_a_database_of_ones_own(clone: Path, empty_database: str) -> None:
    with running(clone, *SERVER, DATABASE_URL=empty_database) as run:
        run.wait_for("Serving on ")
        assert "Running upgrade" in run.output
        assert not (clone / ".data" / "postgres").exists()
        assert run.interrupt() == 0
        assert_nothing_left(clone)


async def test_a_database_of_another_environment_is_served_and_left_alone(
    clone: Path, database_url: str
) -> None:
    """Such as production's through a tunnel: no migration, no jobs, no schedules."""
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
            assert "Not migrating, and not running jobs: The database belongs to" in run.output
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
        ("assets/css/main.scss", "{", "The assets cannot be built; the lines above say why."),
        ("alembic/env.py", "!", "The database cannot be migrated; the lines above say why."),
        ("app/server.py", "!", "The server did not become ready; see above"),
    ],
)
def test_a_step_that_fails(clone: Path, file: str, broken: str, expected: str) -> None:
    (clone / file).write_text(broken)
    with running(clone, *SERVER) as run:
        assert run.wait() == 1
        assert run.output.splitlines()[-1].startswith(expected)
        assert_nothing_left(clone)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("version", [None, "18.20.4"])
def test_no_node_or_an_old_one(clone: Path, version: str | None, installed: bool) -> None:
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
    (sentence,) = said(result.stdout)
    assert re.search(version or "not (to be )?found", sentence)
    assert "Node 20 or later" in sentence
    assert not (clone / ".data").exists()


@pytest.mark.parametrize("version", ["2.7.18", "3.6.15", "3.10.13"])
def test_a_python_that_is_too_old(bare_clone: Path, version: str) -> None:
    python = write_program(bare_clone.parent / "python3", f"echo {version}")
    result = make(bare_clone, "run", PYTHON=str(python))
    assert result.returncode != 0
    (sentence,) = said(result.stdout)
    assert "Python 3.11 or later is needed" in sentence
    assert f"is {version}" in sentence


def test_no_python_at_all(bare_clone: Path) -> None:
    result = make(bare_clone, "run", PYTHON="python3.99")
    assert result.returncode != 0
    (sentence,) = said(result.stdout)
    assert "python3.99 is not to be found" in sentence


def write_python(path: Path, version: str, *, pip_fails: bool = False) -> Path:
    """Write a Python that only tells its version, and says what is done with it."""
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


def test_when_python_packages_are_installed(bare_clone: Path) -> None:
    """Once; again after an interruption, for another lock file, and for another interpreter."""

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
    assert steps() == []  # no interpreter is asked for

    with (bare_clone / "requirements-dev.txt").open("a") as lock:
        lock.write("# changed\n")
    assert steps() == [f"venv {python}", "pip"]  # the same interpreter as before
    assert steps() == []

    other = write_python(bare_clone.parent / "python3.13", "3.13.0")
    assert steps(PYTHON=str(other)) == [f"venv {other}", "pip"]
    assert steps(PYTHON=str(other)) == []
    assert steps(PYTHON=str(other), VENV=".other") == [f"venv {other}", "pip"]


def test_npm_packages_are_installed_again_after_an_interruption(bare_clone: Path) -> None:
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


def test_migration_writes_what_changed_in_the_models(clone: Path) -> None:
    result = make(clone, "migration")
    assert result.returncode != 0
    assert said(result.stdout) == ['Say what it does: make migration m="add a column"']

    with (clone / "app" / "user" / "models.py").open("a") as models:
        models.write(
            "\n\nclass Pet(Base):\n"
            '    __tablename__ = "pets"\n\n'
            "    id: Mapped[int] = mapped_column(primary_key=True)\n"
        )
    result = make(clone, "migration", 'm=Somebody\'s "pets"')
    assert result.returncode == 0, result.stdout
    (written,) = (clone / "alembic" / "versions").glob("*_somebody_s_pets.py")
    assert "create_table" in written.read_text()
    assert_nothing_left(clone)


def test_a_command_gets_the_database_and_its_own_exit_code(clone: Path) -> None:
    with running(clone, *SERVER, "sh", "-c", 'echo "url: $DATABASE_URL"; exit 7') as run:
        assert run.wait() == 7
        assert re.search(r"url: postgresql://.*@127\.0\.0\.1:\d+/app$", run.output, re.MULTILINE)
    with running(clone, *SERVER, "no-such-command") as run:
        assert run.wait() == 1
        assert "no-such-command cannot be run: No such file or directory." in run.output
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
