"""Each command of docs/runbook.md is run on a real database, or checked against what it calls."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from quart import Quart
from werkzeug.exceptions import HTTPException

from app.settings import ROOT
from rehearsal import command
from rehearsal.deploy import BREAKS
from tests.features.factories import Person
from tests.repository import checkout

RUNBOOK = ROOT / "docs" / "runbook.md"
PAGES = (
    "A deploy failed",
    "The site answers 503",
    "The database is full or slow",
    "The queue grows",
    "Roll back",
    "Restore a backup",
    "A key has leaked",
)
# Commands of the Upsun CLI, their aliases and their options that the runbook uses, from
# https://developer.upsun.com/cli/reference
UPSUN_CLI = {
    "activity:list": set(),
    "activity:log": set(),
    "backup:create": set(),
    "backup:list": set(),
    "backup:restore": {"--no-code"},
    "db:dump": {"--gzip", "-f"},
    "db:sql": set(),
    "environment:info": set(),
    "log": {"--worker"},
    "metrics:all": set(),
    "redeploy": set(),
    "resources:set": {"--count", "--disk"},
    "ssh": set(),
    "variable:create": {"--level", "--name", "--sensitive", "--value"},
    "variable:update": {"--value"},
}


def commands() -> list[str]:
    """Return each line of the shell blocks, and the commands within sentences."""
    text = RUNBOOK.read_text()
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [*lines, *re.findall(r"`(upsun [^`]+)`", re.sub(r"^ *```.*?```", "", text, flags=re.S))]


def words(*programs: str) -> list[list[str]]:
    """Return the words of the commands that start with one of the programs."""
    return [
        found
        for line in commands()
        # A comment follows two spaces.
        if (found := shlex.split(line, comments=True)) and found[0] in programs
    ]


def upsun(name: str) -> list[list[str]]:
    """Return the arguments of each call of a command of the Upsun CLI."""
    return [rest for _, command, *rest in words("upsun") if command == name]


def test_each_page_has_commands() -> None:
    text = RUNBOOK.read_text()
    for title in PAGES:
        _, found, rest = text.partition(f"\n## {title}\n")
        assert found, title
        assert "```sh" in rest.partition("\n## ")[0], title


def test_each_command_is_tried_by_a_test_of_this_module() -> None:
    assert {line.split()[0] for line in commands()} == {"curl", "git", "make", "upsun"}


def test_commands_of_the_upsun_cli_are_documented() -> None:
    used = {arguments[1] for arguments in words("upsun")}
    assert used == UPSUN_CLI.keys()
    for _, name, *rest in words("upsun"):
        options = {word for word in rest if word.startswith("-")}
        assert options <= UPSUN_CLI[name], (name, options)
    # What it names in this project.
    for [target, *_] in upsun("resources:set"):
        assert target in {"--count", "--disk"}
    for arguments in upsun("log"):
        assert set(arguments) <= {"app", "deploy", "--worker", "worker"}


async def test_commands_on_an_instance_work(database_url: str, app: Quart) -> None:
    """In the order of the page, on one database."""
    await Person("mallory").register(app)
    lines = list(dict.fromkeys(line for [line] in upsun("ssh")))
    assert len(lines) > 12
    for line in lines:
        arguments = shlex.split(line)
        program = arguments[0].removeprefix(".venv/bin/")
        assert program in {"alembic", "quart"}
        environment = {
            "PATH": os.environ["PATH"],
            "QUART_SKIP_DOTENV": "1",
            "DATABASE_URL": database_url,
            "DATABASE_ENVIRONMENT": "tests",
        }
        if "sanitize" in arguments:
            continue  # it is for previews only: test_sanitize.py
        if "claim" in arguments:
            # As after a restore of a backup of another environment.
            connection = await asyncpg.connect(database_url)
            await connection.execute("UPDATE database_owner SET environment = 'main-bvxea6i'")
            await connection.close()
        done = await asyncio.to_thread(
            subprocess.run,
            [str(Path(sys.executable).parent / program), *arguments[1:]],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if "status" in arguments:
            assert " is o" in done.stdout


async def test_statements_work(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        statements = [statement for [statement] in upsun("db:sql")]
        assert len(statements) >= 9
        for statement in statements:
            # No such process: the functions return false, with a warning.
            result = await connection.fetch(statement.replace("4711", "1073741824"))
            assert result is not None, statement
    finally:
        await connection.close()


async def test_paths_of_urls_exist(app: Quart) -> None:
    urls = [arguments[-1] for arguments in words("curl")]
    assert urls
    for url in urls:
        path = url.removeprefix("https://www.example.com")
        try:
            app.url_map.bind("www.example.com").match(path, "GET")
        except HTTPException as error:
            raise AssertionError(url) from error


def test_rehearsals_have_valid_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dump.sql.gz").touch()
    monkeypatch.chdir(tmp_path)
    rehearsals = words("make")
    assert len(rehearsals) >= 6
    for _, target, *rest in rehearsals:
        assert target == "rehearse"
        arguments = shlex.split("".join(rest).removeprefix("ARGS="))
        parsed = command.parser().parse_args(["-C", str(ROOT), *arguments])
        options = command.options(parsed)
        assert options.broken is None or options.broken in BREAKS
        assert (options.restore is not None) == ("--restore" in arguments)
        assert (options.rollback is not None) == ("--rollback" in arguments)


def test_git_commands_take_a_change_back(tmp_path: Path) -> None:
    """With a migration in the last commit, which stays in place."""
    clone = checkout(tmp_path / "clone")
    identity = {"GIT_AUTHOR_NAME": "T", "GIT_AUTHOR_EMAIL": "t@example.com"}
    identity |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in identity.items()}

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "core.hooksPath=/dev/null", *arguments],
            cwd=clone,
            env={"PATH": os.environ["PATH"], **identity},
            check=True,
            capture_output=True,
        )

    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--quiet", "--message", "The earlier release")
    migration = clone / "alembic" / "versions" / "20300101_c0ffee_more.py"
    migration.write_text('"""more"""\n')
    (clone / "app" / "more.py").write_text('"""More."""\n')
    git("add", "--all")
    git("commit", "--quiet", "--message", "More")
    remote = tmp_path / "remote.git"
    git("init", "--quiet", "--bare", str(remote))
    git("remote", "add", "upsun", str(remote))
    lines = words("git")
    assert [arguments[1] for arguments in lines] == ["revert", "push", "checkout"]
    git(*lines[0][1:])
    assert not migration.exists()
    git(*lines[1][1:])
    git(*lines[2][1:])
    assert migration.exists()
    assert not (clone / "app" / "more.py").exists()
