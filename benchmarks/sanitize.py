"""How long `quart sanitize` takes on many users.

  python -m benchmarks.sanitize [--users N]

Fills a database of the embedded PostgreSQL, in a directory that is removed at the end, with users
(one in a hundred bears a name that another one is about to get) and two audit events for each.
Prints the seconds of a run, of a second one that finds nothing to do, and of one that is killed in
the middle of the users with SIGKILL and gone on with by the next.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg

from embedded_postgres import create_database, postgres
from quart_upsun.database.ownership import Identity
from quart_upsun.database.url import parse_database_url
from quart_upsun.sanitize.sanitizer import sanitize

ROOT = Path(__file__).parent.parent
ENVIRONMENT = "benchmark-4tw7dqi"
FILL = (
    """
    INSERT INTO users (username, email, pending_email, password_hash)
    SELECT CASE WHEN n % 100 = 0 THEN 'user-' || n - 50 ELSE 'ada.lovelace.' || n END,
        'ada.lovelace.' || n || '@example.com',
        CASE WHEN n % 10 = 0 THEN 'augusta.' || n || '@example.com' END,
        '$argon2id$v=19$m=19456,t=2,p=1$' || md5(n::text) || '$' || md5(n::text) || md5(n::text)
    FROM generate_series(1, $1::int) AS n
    """,
    """
    INSERT INTO audit_events (kind, user_id, client)
    SELECT 'login', n / 2, '203.0.113.' || n % 256 FROM generate_series(1, 2 * $1::int) AS n
    """,
)
REAL = r"""
    SELECT count(*) FROM users WHERE username <> 'user-' || id
    OR email <> 'user-' || id || '@example.invalid' OR password_hash <> 'sanitized'
    OR session_version <> 2
"""


def migrate(url: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        check=True,
        stderr=subprocess.DEVNULL,
    )


async def fill(url: str, users: int) -> None:
    connection = await asyncpg.connect(url)
    for statement in FILL:
        await connection.execute(statement, users)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


async def timed(url: str, name: str) -> float:
    begun = time.monotonic()
    identity = Identity(ENVIRONMENT, "development", has_own_database=True)
    await sanitize(parse_database_url(url), identity, lambda line: print(f"    {line}"))
    seconds = time.monotonic() - begun
    print(f"{name}: {seconds:.2f} s")
    return seconds


async def kill_in_the_middle(url: str, users: int) -> None:
    """Run the command itself, and kill it."""
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url,
        "QUART_APP": "app:create_app()",
        "SECRET_KEY": "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0",
        "PLATFORM_APPLICATION_NAME": "app",
        "PLATFORM_ENVIRONMENT": ENVIRONMENT,
        "PLATFORM_ENVIRONMENT_TYPE": "development",
    }
    connection = await asyncpg.connect(url)
    begun = time.monotonic()
    command = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("quart"), "sanitize"), cwd=ROOT, env=environment
    )
    position = 0
    while position < users / 2:
        await asyncio.sleep(0.02)
        if command.returncode is not None:
            raise SystemExit("It has ended before it could be killed: take more users.")
        position = await connection.fetchval("SELECT max(position) FROM sanitizations") or 0
    command.kill()
    await command.wait()
    print(f"killed after {time.monotonic() - begun:.2f} s, at user {position:,}")
    await connection.close()


async def main(users: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="sanitize-") as directory,
        postgres(Path(directory)) as server,
    ):
        begun = time.monotonic()
        whole = await create_database(server, "whole")
        migrate(whole)
        await fill(whole, users)
        print(f"{users:,} users filled in: {time.monotonic() - begun:.1f} s")
        killed = await create_database(server, "killed", template="whole")
        await timed(whole, "first run")
        await timed(whole, "second run")
        await kill_in_the_middle(killed, users)
        await timed(killed, "the run after")
        for url in (whole, killed):
            connection = await asyncpg.connect(url)
            assert await connection.fetchval(REAL) == 0  # noqa: S101
            assert await connection.fetchval("SELECT count(*) FROM audit_events") == 0  # noqa: S101
            await connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1_000_000, metavar="N")
    asyncio.run(main(parser.parse_args().users))
