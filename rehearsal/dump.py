"""Read a dump of a PostgreSQL database, as `pg_dump` and `upsun db:dump` write it.

The result is a file with plain SQL, which psql can run. https://www.postgresql.org/docs/18/app-pgdump.html
describes the formats.
"""

import gzip
import re
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from rehearsal.services import ServiceError

GZIP, CUSTOM = b"\x1f\x8b", b"PGDMP"
PLAIN = "-- PostgreSQL database dump"
COMPLETE = "-- PostgreSQL database dump complete"
CLUSTER = "-- PostgreSQL database cluster dump"
VERSION = re.compile(r"^-- Dumped from database version (\d+)(\S*)", re.MULTILINE)
HEAD_BYTES, TAIL_BYTES = 4096, 1024  # of a plain dump: its header, and the lines at its end
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Dump:
    """A complete dump."""

    sql: Path
    """The file with plain SQL."""
    version: str
    """The version of the server that it comes from, such as `18.1`."""

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


def read(file: Path, directory: Path, pg_restore: str) -> Dump:
    """Check a dump, and turn it into plain SQL.

    Args:
        file: plain SQL, or the custom format, either of them compressed with gzip or not.
        directory: an existing directory for temporary files.
        pg_restore: the path of the program, which reads the custom format.

    Raises:
        ServiceError: the file is not a dump of one database, or is not complete.
    """
    name = file.name
    try:
        start = first_bytes(file)
        if start.startswith(GZIP):
            file = unpack(file, directory / "unpacked")
            start = first_bytes(file)
    except OSError as error:
        raise ServiceError(f"The dump {file} cannot be read: {error.strerror}.") from None
    if not start:
        raise ServiceError(f"The dump {name} is empty.")
    if start.startswith(CUSTOM):
        file = convert(file, directory / "dump.sql", pg_restore, name)
        start = first_bytes(file)
    head = start.decode(errors="replace")
    if CLUSTER in head:
        raise ServiceError(
            f"{name} is a dump of all databases of a server. Dump one of them, with pg_dump or"
            " `upsun db:dump`."
        )
    version = VERSION.search(head)
    if PLAIN not in head or version is None:
        raise ServiceError(
            f"{name} is not a dump of a PostgreSQL database. Make one with pg_dump or with"
            " `upsun db:dump --gzip`."
        )
    if COMPLETE.encode() not in last_bytes(file):
        raise ServiceError(f"The dump {name} is truncated: its end is missing. Make it again.")
    return Dump(file, f"{version[1]}{version[2]}")


def first_bytes(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(HEAD_BYTES)


def last_bytes(file: Path) -> bytes:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return content.read()


def unpack(file: Path, target: Path) -> Path:
    """Decompress a file.

    Raises:
        ServiceError: it is truncated or damaged.
    """
    try:
        with gzip.open(file) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, CHUNK_BYTES)
    except EOFError:
        raise ServiceError(
            f"The dump {file.name} is truncated: the compressed data ends too early. Make it again."
        ) from None
    except (gzip.BadGzipFile, zlib.error):
        raise ServiceError(
            f"The dump {file.name} is damaged: it cannot be decompressed. Make it again."
        ) from None
    return target


def convert(file: Path, target: Path, pg_restore: str, name: str) -> Path:
    """Write a dump in the custom format as plain SQL.

    Raises:
        ServiceError: pg_restore cannot read it, for instance because it is truncated or newer.
    """
    done = subprocess.run(
        [pg_restore, "--file", str(target), str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = lines[0].removeprefix("pg_restore: ").removeprefix("error: ")
        raise ServiceError(f"pg_restore cannot read the dump {name}: {reason}.")
    return target
