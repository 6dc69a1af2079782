"""Migrate an empty database and compare it with the models: `python -m development.upgrade.schema`.

The `make upgrade` of an earlier release runs this module of the newer one, so its name stays.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from embedded_postgres import PostgresError, create_database, postgres

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Print Alembic's output; return 0 if the migrations create what the models describe."""
    # The database is not the developer's, so that the upgrade can be undone by Git alone.
    with tempfile.TemporaryDirectory(prefix="upgrade-") as directory:
        try:
            with postgres(Path(directory) / "data", durable=False) as server:
                url = asyncio.run(create_database(server, "app"))
                return compare(url)
        except PostgresError as error:
            print(error, file=sys.stderr)
            return 1


def compare(url: str) -> int:
    """Return the exit code of the first command that fails."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PLATFORM_")
    }
    for arguments in (("upgrade", "head"), ("check",)):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=ROOT,
            env={**environment, "DATABASE_URL": url},
            check=False,
        )
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
