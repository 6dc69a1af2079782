"""The embedded PostgreSQL: shared, durable, and gone when its last user is."""

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

HERE = Path(__file__).resolve().parents[2]  # where the package can be imported from
HOLDER = """
import sys
from pathlib import Path
from embedded_postgres import postgres

with postgres(Path(sys.argv[1]), durable=False) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


async def ask(url: str, statement: str) -> object:
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
        assert time.monotonic() < deadline, f"still there: {processes(directory)}"
        time.sleep(0.05)


@contextmanager
def holder(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Let another process use the server; yield the process and the URL that it got."""
    with subprocess.Popen(
        # With a slash at the end, so that processes() does not take it for the server's.
        [sys.executable, "-c", HOLDER, f"{directory}/"],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


async def test_data_survives_a_restart_and_no_process_does(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with postgres(directory, durable=False) as url:
        database = await create_database(url, "own")
        await ask(database, "CREATE TABLE kept ()")
        assert len(processes(directory)) == 2
    assert not processes(directory)
    with postgres(directory, durable=False) as again:
        assert again == url  # the same port, if nobody took it
        assert await create_database(again, "own", exist_ok=True) == database
        assert await ask(database, "SELECT count(*) FROM kept") == 0
        with pytest.raises(asyncpg.DuplicateDatabaseError):
            await create_database(url, "own")
        copy = await create_database(url, 'a "copy"/of it', "own")
        assert await ask(copy, "SELECT count(*) FROM kept") == 0


async def test_options_and_locale(tmp_path: Path) -> None:
    with postgres(tmp_path / "fast", durable=False, max_connections=37) as url:
        assert await ask(url, "SHOW max_connections") == "37"
        assert await ask(url, "SHOW fsync") == "off"
    with postgres(tmp_path / "durable") as url:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await ask(url, f"SHOW {name}") == "on"
        assert await ask(url, "SHOW timezone") == "UTC"
        assert await ask(url, "SELECT upper('é')") == "É"
        assert await ask(url, "SELECT 'a' < 'B'") is False


async def test_strangers_are_kept_out(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with postgres(directory, durable=False) as url:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        with pytest.raises(asyncpg.InvalidPasswordError):
            await ask(re.sub(r":[^:@]+@", ":guessed@", url), "SELECT 1")


async def test_the_last_holder_stops_it(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with holder(directory) as (other, url):
        with postgres(directory, durable=False) as same:
            assert same == url
            other.communicate("")  # it started the server, and leaves first
            assert other.returncode == 0
            assert await ask(url, "SELECT 1") == 1
        assert not processes(directory)


async def test_a_killed_holder_leaves_no_server(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with holder(directory) as (other, url):
        await ask(url, "CREATE TABLE kept ()")
        other.kill()
        other.wait()
        wait_until_gone(directory)
    with postgres(directory, durable=False) as url:
        assert await ask(url, "SELECT count(*) FROM kept") == 0


async def test_a_killed_holder_does_not_stop_the_others(tmp_path: Path) -> None:
    directory = tmp_path / "server"
    with postgres(directory, durable=False) as url:
        with holder(directory) as (other, _):
            other.kill()
            other.wait()
        # Longer than the keeper looks away: it must have seen the death, and stayed.
        assert await ask(url, "SELECT 1 FROM pg_sleep(1.5)") == 1
    assert not processes(directory)


@pytest.mark.parametrize("names", [["postgres"], ["python"], ["python", "postgres"]])
async def test_killed_servers_start_again(tmp_path: Path, names: list[str]) -> None:
    directory = tmp_path / "server"
    with postgres(directory) as url:
        await ask(url, "CREATE TABLE kept ()")
        server = postmaster(directory)
        keeper = next(each for each in processes(directory) if each != server)
        for name in names:
            {"postgres": server, "python": keeper}[name].kill()
        keeper.wait(20)
    with postgres(directory) as url:
        assert await ask(url, "SELECT count(*) FROM kept") == 0
    wait_until_gone(directory)


async def test_a_stale_file_may_name_a_process_of_somebody_else(tmp_path: Path) -> None:
    file = tmp_path / "data" / "postmaster.pid"
    with postgres(tmp_path, durable=False):
        _, *others = file.read_text().splitlines()
    file.write_text("\n".join([str(os.getpid()), *others, ""]))
    with postgres(tmp_path, durable=False) as url:
        assert await ask(url, "SELECT 1") == 1


async def test_a_deep_directory(tmp_path: Path) -> None:
    directory = tmp_path.joinpath(*["a directory of a long name"] * 10)
    assert len(str(directory)) > 250
    with postgres(directory, durable=False) as url:
        assert await ask(url, "SELECT 1") == 1


async def test_an_unfinished_cluster_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "data.new" / "base").mkdir(parents=True)
    with postgres(tmp_path, durable=False) as url:
        assert await ask(url, "SELECT 1") == 1


def test_a_cluster_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(PostgresError, match=r"^[^\n]* made by PostgreSQL 17, [^\n]*\.$"):
        postgres(tmp_path).__enter__()


def test_a_server_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    with postgres(tmp_path, durable=False):
        pass
    with (tmp_path / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_option = 1\n")
    with pytest.raises(PostgresError, match=r"does not start; .*log says why\.$"):
        postgres(tmp_path, durable=False).__enter__()
    assert "no_such_option" in (tmp_path / "log").read_text()
    assert not processes(tmp_path)
