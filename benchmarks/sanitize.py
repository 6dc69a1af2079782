"""Measure how long `quart sanitize` takes on a large database.

  python -m benchmarks.sanitize [--users N]

Starts an embedded PostgreSQL in a temporary directory, and creates users with two audit events
each. One user in a hundred has a name that another user gets when it is sanitized. Prints the
duration of a first run, of a second run with nothing to do, and of a run that resumes after one
that was killed with SIGKILL.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import asyncpg

from benchmarks import harness
from embedded_postgres import create_database, postgres
from quart_upsun.database import load_models
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
NOT_SANITIZED = r"""
    SELECT count(*) FROM users WHERE username <> 'user-' || id
    OR email <> 'user-' || id || '@example.invalid' OR password_hash <> 'sanitized'
    OR session_version <> 2
"""


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


async def kill_halfway(url: str, users: int) -> None:
    """Run `quart sanitize`, and kill it when half of the users are done."""
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
            raise SystemExit("The command finished before it could be killed. Use more --users.")
        position = await connection.fetchval("SELECT max(position) FROM sanitizations") or 0
    command.kill()
    await command.wait()
    print(f"killed after {time.monotonic() - begun:.2f} s, at user {position:,}")
    await connection.close()


async def main(users: int) -> None:
    load_models("app")  # their rules say what is replaced
    with (
        tempfile.TemporaryDirectory(prefix="sanitize-") as directory,
        postgres(Path(directory)) as server,
    ):
        begun = time.monotonic()
        whole = await create_database(server, "whole")
        harness.migrate(whole, DATABASE_ENVIRONMENT=ENVIRONMENT)
        await fill(whole, users)
        print(f"{users:,} users created: {time.monotonic() - begun:.1f} s")
        killed = await create_database(server, "killed", template="whole")
        await timed(whole, "first run")
        await timed(whole, "second run")
        await kill_halfway(killed, users)
        await timed(killed, "resumed run")
        for url in (whole, killed):
            connection = await asyncpg.connect(url)
            assert await connection.fetchval(NOT_SANITIZED) == 0  # noqa: S101
            assert await connection.fetchval("SELECT count(*) FROM audit_events") == 0  # noqa: S101
            await connection.close()


if __name__ == "__main__":
    options = harness.parser("sanitize", __doc__, users=(1_000_000, "number of users")).parse_args()
    asyncio.run(main(options.users))
