"""The command lines of the benchmarks, their databases, and the result that the report reads."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from embedded_postgres import create_database, postgres

ROOT = Path(__file__).parent.parent


def parser(
    name: str, description: str | None, **numbers: tuple[float, str]
) -> argparse.ArgumentParser:
    """Return the command line of a benchmark.

    Args:
        name: the module.
        description: its docstring.
        numbers: the default and the help text of each option. The type of the default is that of
            the option.
    """
    result = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, (default, text) in numbers.items():
        result.add_argument(
            f"--{option}",
            type=type(default),
            default=default,
            metavar="N" if isinstance(default, int) else "S",
            help=f"{text} (default: %(default)s)",
        )
    return result


@contextmanager
def temporary_database(
    name: str, *, durable: bool = True, **variables: str
) -> Iterator[tuple[str, Path]]:
    """Start an embedded PostgreSQL, and yield the URL of a migrated database and a directory.

    Args:
        name: of the benchmark.
        durable: whether a commit waits for the disk.
        variables: further environment variables for the migrations.
    """
    with (
        tempfile.TemporaryDirectory(prefix=f"{name}-") as directory,
        postgres(Path(directory) / "postgres", durable=durable) as server,
    ):
        url = asyncio.run(create_database(server, name))
        migrate(url, **variables)
        yield url, Path(directory)


def migrate(url: str, **variables: str) -> None:
    """Migrate an empty database; `variables` are further environment variables."""
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": url, **variables},
        check=True,
        stderr=subprocess.DEVNULL,
    )


class DatabaseServer:
    """The processes of the embedded PostgreSQL of `temporary_database()`."""

    def __init__(self, directory: Path) -> None:
        pid = (directory / "postgres" / "data" / "postmaster.pid").read_text().split()[0]
        self._postmaster = psutil.Process(int(pid))

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its processes, those that have ended included."""
        total = sum(self._postmaster.cpu_times()[:4])  # with those of ended children
        for each in self._postmaster.children():
            with suppress(psutil.NoSuchProcess):
                total += sum(each.cpu_times()[:2])
        return float(total)


def finish(result: dict[str, Any], missed: Sequence[str]) -> int:
    """Print the missed targets and, as the last line, the result as JSON; return the exit code."""
    for target in missed:
        print(f"Target missed: {target}")
    print(json.dumps(result | {"ok": not missed}))
    return 1 if missed else 0
