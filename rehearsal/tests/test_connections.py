"""Database connections: how they are counted, and whether they fit."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from rehearsal.connections import WEB, Counting, Demand, Use, demand, judge
from rehearsal.findings import Severity
from rehearsal.project import Connections
from rehearsal.services import Databases
from rehearsal.services.base import Accounts
from rehearsal.tests.sample import CONFIG, SERVE, errors, rehearse, sample, summary

YAML = ".upsun/config.yaml"
PROJECT = "pyproject.toml"

# Opens connections, says so, and waits for the end of its standard input.
CLIENT = """
import asyncio, sys, asyncpg

async def main():
    connections = [await asyncpg.connect(sys.argv[1]) for _ in range(int(sys.argv[2]))]
    print("open", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for connection in connections:
        await connection.close()

asyncio.run(main())
"""
# The server of the sample project, with three connections in each of two processes.
CONNECTED = SERVE.replace(
    "server.serve_forever()",
    f"""\
import subprocess
host, port = os.environ["DB_HOST"], os.environ["DB_PORT"]
user, password = os.environ["DB_USERNAME"], os.environ["DB_PASSWORD"]
url = f"postgresql://{{user}}:{{password}}@{{host}}:{{port}}/main"
arguments = [{sys.executable!r}, "client.py", url, "3"]
clients = [
    subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
]
for client in clients:
    assert client.stdout.readline(), "no connection"
server.serve_forever()
for client in clients:
    client.communicate()""",
)
WITH_DATABASE = CONFIG.replace(
    "    mounts:", '    relationships:\n      db: "db:postgresql"\n    mounts:'
).replace("routes:", "services:\n  db:\n    type: postgresql:18\nroutes:")
SLOW = '[tool.rehearsal]\npages = ["/"]\nready = "/ready"\nrate = 20\n'


class Container:
    """The process of a client, in place of a container."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def pids(self) -> list[int]:
        return [self.pid]


@asynccontextmanager
async def client(url: str, connections: int) -> AsyncIterator[Container]:
    """Run a process that has connections."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT, url, str(connections)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"open\n"
        yield Container(process)
    finally:
        await process.communicate(b"")  # closes its standard input


async def test_connections_are_counted_by_container_without_our_own(tmp_path: Path) -> None:
    accounts = Accounts(["main"], {})
    async with (
        Databases.running(tmp_path / "db", accounts, [], "18", 40) as server,
        client(server.url, 3) as web,
        client(server.url, 2) as worker,
        client(server.url, 1),
    ):
        containers = {"app": web, "app-worker": worker}
        counting = Counting()
        own = await server.connect()  # such as the check of acknowledged writes
        try:
            sample = await counting.sample([server], containers)
            assert sample is not None
            assert sample.by_container == {"app": {web.pid: 3}, "app-worker": {worker.pid: 2}}
            assert (sample.total, sample.others) == (6, 1)
            # The same as PostgreSQL's own numbers.
            by_hand = await own.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            )
            assert by_hand == sample.total + 2  # `own`, and the counting itself
            assert (counting.limit, counting.reserved) == (40, 3)
            # A connection that is opened later is counted the next time.
            async with client(server.url, 4) as late:
                sample = await counting.sample([server], {**containers, "late": late})
                assert sample is not None
                assert sample.by_container["late"] == {late.pid: 4}
                assert (sample.total, sample.others) == (10, 1)
        finally:
            await own.close()
            await counting.close()
        # Beyond the limit, PostgreSQL refuses connections; the reserved ones are for superusers.
        assert await refused(server, 40)


async def refused(server: Databases, count: int) -> bool:
    """Return whether the server refuses one of so many connections."""
    opened = []
    try:
        for _ in range(count):
            opened.append(await server.connect())
    except asyncpg.TooManyConnectionsError:
        return True
    finally:
        for connection in opened:
            await connection.close()
    return False


async def test_no_server_has_no_connections() -> None:
    assert await Counting().sample([], {}) is None


POOL = Connections(pool=8, others=2, variable="DATABASE_POOL_SIZE")
MEASURED = {("app", WEB): Use(9, 2), ("app", "worker"): Use(3, 1)}


def needs(instances: int, settings: Connections | None, pool: int = 8) -> Demand:
    return demand(MEASURED, 1, application="app", instances=instances, settings=settings, pool=pool)


@pytest.mark.parametrize(
    ("instances", "settings", "total"),
    [
        # Two releases, each with two processes per instance and one worker; and one hook.
        (3, POOL, 2 * (3 * 2 * 10 + 10) + 1),
        (8, POOL, 2 * (8 * 2 * 10 + 10) + 1),
        # As measured, if the size of the pool is not known.
        (3, None, 2 * (3 * 9 + 3) + 1),
        # Never less than measured.
        (3, Connections(pool=1), 2 * (3 * 9 + 3) + 1),
    ],
)
def test_demand_counts_two_releases(
    instances: int, settings: Connections | None, total: int
) -> None:
    needed = needs(instances, settings, settings.pool if settings else 0)
    assert needed.total == total


def test_demand_is_explained() -> None:
    assert str(needs(3, POOL)) == "2 x (3 instances x 20 + 10 of workers) + 1 of hooks"
    assert str(Demand(1, 4, 0, 0, None)) == "2 x (1 instance x 4)"


@pytest.mark.parametrize("usable", [150, 197, 300])
def test_named_pool_size_is_the_largest_that_fits(usable: int) -> None:
    needed = needs(8, POOL)
    (finding,) = judge(MEASURED, needed, usable, application="app", settings=POOL)
    assert finding.severity is Severity.WARNING
    assert f"may need {needed.total} connections" in finding.message
    assert f"{usable} are allowed here" in finding.message
    size = int(finding.fix.partition("DATABASE_POOL_SIZE to at most ")[2].partition(" ")[0])
    processes = 8 * 2 + 1
    assert 2 * processes * (size + 2) + 1 <= usable < 2 * processes * (size + 3) + 1


def test_demand_that_fits_is_no_finding() -> None:
    needed = needs(3, POOL)
    assert judge(MEASURED, needed, needed.total, application="app", settings=POOL) == []
    (finding,) = judge(MEASURED, needed, needed.total - 1, application="app", settings=POOL)
    assert "SHOW max_connections" in finding.fix


@pytest.mark.parametrize(
    ("settings", "usable", "words"),
    [
        (POOL, 60, "use fewer instances, or a connection pooler"),
        (None, 100, "at most 5 connections"),  # 2 x (8 x 5 + 3) + 1 = 87; 6 would need 103
        (None, 5, "use fewer instances, or a connection pooler"),
    ],
)
def test_fix_without_a_pool_that_fits(
    settings: Connections | None, usable: int, words: str
) -> None:
    (finding,) = judge(MEASURED, needs(8, settings), usable, application="app", settings=settings)
    assert words in finding.fix


@pytest.mark.parametrize("limit", [30, 60])
async def test_connections_of_all_instances_are_compared_with_the_limit(
    limit: int, tmp_path: Path
) -> None:
    files = {
        YAML: WITH_DATABASE,
        "serve.py": CONNECTED,
        "client.py": CLIENT,
        "pyproject.toml": SLOW,
    }
    report = await rehearse(
        sample(tmp_path / "repository", **files),
        tmp_path / "state",
        isolated=False,  # for this interpreter's asyncpg
        instances=2,
        instances_max=4,
        max_connections=limit,
    )
    assert not errors(report), summary(report)
    assert report.costs is not None
    containers = {each.name: each.connections for each in report.costs.containers}
    assert containers == {"web": Use(6, 2), "web (app-2)": Use(6, 2)}
    assert report.costs.peak_connections == 12
    assert report.costs.demand is not None
    assert report.costs.demand.total == 2 * 4 * 6
    found = [each for each in report.findings if each.stage == "connections"]
    assert [each.severity for each in found] == ([Severity.WARNING] if limit == 30 else [])
    if limit == 30:
        assert "4 instances may need 48 connections" in found[0].message
        assert "27 are allowed" in found[0].message
    assert report.document()["costs"]["demand"]["total"] == 48
