"""How Alembic reaches the database: one migration at a time, with bounded waiting, then retries.

Works from the command line and when called inside a running event loop.
"""

import asyncio
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from alembic import context
from alembic.util import CommandError
from asyncpg import PostgresError
from sqlalchemy import Connection, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app import database
from app.database import Base, load_models
from app.settings import load_database_url

log = logging.getLogger("alembic.env")
config = context.config

# Any number that nothing else in this database locks.
ADVISORY_LOCK = 0x71756172
LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED = "55P03", "40P01"


def option(name: str) -> str:
    value = config.get_main_option(name)
    if value is None:
        raise CommandError(f"alembic.ini lacks {name}")
    return value


load_models()

if not logging.getLogger().handlers:  # the command line; an application has its own
    logging.basicConfig(stream=sys.stderr, format="%(levelname)-5s %(message)s", level="INFO")
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


def print_sql() -> None:
    """`--sql`: write the statements instead of running them."""
    context.configure(
        dialect_name="postgresql",
        target_metadata=Base.metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    with context.begin_transaction():
        context.run_migrations()


async def migrate() -> None:
    """Connect, wait for our turn, run."""
    url = load_database_url()
    engine = create_async_engine(
        url,
        async_creator=partial(
            database.connect,
            url,
            name="alembic",
            # Set with the connection, so that `RESET` in a migration comes back to them.
            settings={
                "lock_timeout": option("lock_timeout"),
                "statement_timeout": option("statement_timeout"),
            },
        ),
        poolclass=pool.NullPool,
        hide_parameters=True,
    )
    connection = await connect(engine)
    try:
        await take_turn(connection)
        await run(connection)
    finally:
        await connection.close()  # ends the database session, and with it the lock
        await engine.dispose()


async def connect(engine: AsyncEngine) -> AsyncConnection:
    """Connect, with patience for a database that is still starting."""
    deadline = time.monotonic() + float(option("connect_seconds"))
    while True:
        try:
            return await engine.connect()
        except (OSError, PostgresError, DBAPIError) as error:
            if time.monotonic() > deadline:
                raise CommandError(f"the database cannot be reached: {error}") from error
            log.warning("the database cannot be reached yet: %s", error)
            await asyncio.sleep(1)


async def take_turn(connection: AsyncConnection) -> None:
    """Take the lock that lets one migration run at a time.

    Held before the revision is read: whoever waited finds the work already done.
    """
    deadline = time.monotonic() + float(option("turn_seconds"))
    waiting = False
    while not await connection.scalar(text(f"SELECT pg_try_advisory_lock({ADVISORY_LOCK})")):
        if time.monotonic() > deadline:
            raise CommandError("another migration is still running; gave up waiting for its end")
        if not waiting:
            waiting = True
            log.info("another migration is running; waiting for its end")
        await connection.commit()
        await asyncio.sleep(0.2)
    await connection.commit()


async def run(connection: AsyncConnection) -> None:
    """Run the migrations, again from the start where a lock was not to be had in time."""
    attempts = int(option("attempts"))
    for attempt in range(1, attempts + 1):
        try:
            await connection.run_sync(run_in_transaction)
            return
        except DBAPIError as error:
            await connection.rollback()
            if getattr(error.orig, "sqlstate", None) not in {LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED}:
                raise
            if attempt == attempts:
                raise CommandError(
                    f"a table stayed locked in {attempts} attempts; nothing was migrated."
                    " Look for long transactions in pg_stat_activity, then run this again"
                ) from error
            log.warning("a table is locked; attempt %d of %d failed", attempt, attempts)
            await asyncio.sleep(attempt)  # let the readers through that queued up behind us


def run_in_transaction(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    if context.is_offline_mode():
        print_sql()
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(migrate())
    else:  # Alembic's commands are synchronous: the caller's loop waits, another one works
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, migrate()).result()


main()
