"""The embedded PostgreSQL server: sharing, durability, and shutdown."""

import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from embedded_postgres import PostgresError, create_database, postgres

ROOT = Path(__file__).resolve().parents[2]  # the directory to import the package from
HOLDER = """
import sys
from pathlib import Path
from embedded_postgres import postgres

with postgres(Path(sys.argv[1]), durable=False) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


async def fetch(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def processes(directory: Path) -> list[psutil.Process]:
    """Return the keeper and the postmaster of the server in `directory`."""
    paths = {str(directory), str(directory / "data")}
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if paths.intersection(process.info["cmdline"] or [])
    ]


def postmaster(directory: Path) -> psutil.Process:
    return psutil.Process(int((directory / "data" / "postmaster.pid").read_text().split()[0]))


def wait_until_gone(directory: Path) -> None:
    deadline = time.monotonic() + 20
    while processes(directory):
        assert time.monotonic() < deadline, f"still running: {processes(directory)}"
        time.sleep(0.05)


@contextmanager
def holder(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Use the server in another process; yield that process and its URL of the server."""
    with subprocess.Popen(
        # With a trailing slash, so that processes() does not find this process.
        [sys.executable, "-c", HOLDER, f"{directory}/"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


async def test_restart_keeps_data_and_leaves_no_process(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with postgres(directory, durable=False) as url:
        database = await create_database(url, "own")
        await fetch(database, "CREATE TABLE kept ()")
        assert len(processes(directory)) == 2
    assert not processes(directory)
    with postgres(directory, durable=False) as again:
        assert again == url  # the same port, if it is still free
        assert await create_database(again, "own", exist_ok=True) == database
        assert await fetch(database, "SELECT count(*) FROM kept") == 0
        with pytest.raises(asyncpg.DuplicateDatabaseError):
            await create_database(url, "own")
        copy = await create_database(url, 'a "copy"/of it', "own")
        assert await fetch(copy, "SELECT count(*) FROM kept") == 0


async def test_options_and_locale(tmp_path: Path) -> None:
    with postgres(tmp_path / "fast", durable=False, max_connections=37) as url:
        assert await fetch(url, "SHOW max_connections") == "37"
        assert await fetch(url, "SHOW fsync") == "off"
    with postgres(tmp_path / "durable") as url:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await fetch(url, f"SHOW {name}") == "on"
        assert await fetch(url, "SHOW timezone") == "UTC"
        assert await fetch(url, "SELECT upper('é')") == "É"
        assert await fetch(url, "SELECT 'a' < 'B'") is False


async def test_other_users_have_no_access(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with postgres(directory, durable=False) as url:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        with pytest.raises(asyncpg.InvalidPasswordError):
            await fetch(re.sub(r":[^:@]+@", ":guessed@", url), "SELECT 1")


async def test_last_user_stops_the_server(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with holder(directory) as (other, url):
        with postgres(directory, durable=False) as same:
            assert same == url
            other.communicate("")  # this process started the server and leaves first
            assert other.returncode == 0
            assert await fetch(url, "SELECT 1") == 1
        assert not processes(directory)


async def test_killed_user_leaves_no_server(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with holder(directory) as (other, url):
        await fetch(url, "CREATE TABLE kept ()")
        other.kill()
        other.wait()
        wait_until_gone(directory)
    with postgres(directory, durable=False) as url:
        assert await fetch(url, "SELECT count(*) FROM kept") == 0


async def test_killed_user_does_not_affect_others(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with postgres(directory, durable=False) as url:
        with holder(directory) as (other, _):
            other.kill()
            other.wait()
        # Longer than the keeper's poll interval: the keeper has noticed, and must keep running.
        assert await fetch(url, "SELECT 1 FROM pg_sleep(1.5)") == 1
    assert not processes(directory)


@pytest.mark.parametrize("names", [["postgres"], ["python"], ["python", "postgres"]])
async def test_killed_server_can_be_restarted(tmp_path: Path, names: list[str]) -> None:
    directory = tmp_path / "server"
    with postgres(directory) as url:
        await fetch(url, "CREATE TABLE kept ()")
        server = postmaster(directory)
        keeper = next(each for each in processes(directory) if each != server)
        for name in names:
            {"postgres": server, "python": keeper}[name].kill()
        keeper.wait(20)
    with postgres(directory) as url:
        assert await fetch(url, "SELECT count(*) FROM kept") == 0
    wait_until_gone(directory)


async def test_stale_pid_file_may_name_an_unrelated_process(tmp_path: Path) -> None:
    file = tmp_path / "data" / "postmaster.pid"
    with postgres(tmp_path, durable=False):
        _, *others = file.read_text().splitlines()
    file.write_text("\n".join([str(os.getpid()), *others, ""]))
    with postgres(tmp_path, durable=False) as url:
        assert await fetch(url, "SELECT 1") == 1


async def test_long_path(tmp_path: Path) -> None:
    directory = tmp_path.joinpath(*["a directory of a long name"] * 10)
    assert len(str(directory)) > 250
    with postgres(directory, durable=False) as url:
        assert await fetch(url, "SELECT 1") == 1


async def test_incomplete_cluster_is_recreated(tmp_path: Path) -> None:
    (tmp_path / "data.new" / "base").mkdir(parents=True)
    with postgres(tmp_path, durable=False) as url:
        assert await fetch(url, "SELECT 1") == 1


def test_cluster_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(PostgresError, match=r"^[^\n]* PostgreSQL 17, [^\n]*\.$"):
        postgres(tmp_path).__enter__()


def test_failed_start_refers_to_the_log(tmp_path: Path) -> None:
    with postgres(tmp_path, durable=False):
        pass
    with (tmp_path / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_option = 1\n")
    with pytest.raises(PostgresError, match=r"failed to start\. See .*/log\.$"):
        postgres(tmp_path, durable=False).__enter__()
    assert "no_such_option" in (tmp_path / "log").read_text()
    assert not processes(tmp_path)
