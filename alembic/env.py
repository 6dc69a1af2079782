"""How Alembic reaches the database: one migration at a time, with bounded waiting, then retries.

It migrates only a database that belongs to this environment, and has nothing to do for one that is
ahead of this code. Works from the command line and when called inside a running event loop.
"""

import asyncio
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from alembic import context
from alembic.util import CommandError
from asyncpg import PostgresError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.settings import load_database_settings
from quart_upsun.database import (
    LOCK_NOT_AVAILABLE,
    READ_ONLY,
    Base,
    advisory_locks,
    load_models,
    unpooled_engine,
)
from quart_upsun.database.ownership import (
    HAS_OWNER_TABLE,
    UPSERT_OWNER,
    ForeignDatabaseError,
    Identity,
    read_owner,
    require_owner,
)
from quart_upsun.settings import DatabaseSettings

log = logging.getLogger("alembic.env")
config = context.config

DEADLOCK_DETECTED = "40P01"


def option(name: str) -> str:
    value = config.get_main_option(name)
    if value is None:
        raise CommandError(f"alembic.ini lacks {name}")
    return value


load_models("app")

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
    settings: DatabaseSettings = load_database_settings()
    engine = unpooled_engine(
        settings.database_url,
        name="alembic",
        # Set with the connection, so that `RESYNC_TEXT` in a migration comes back to them.
        settings={
            "lock_timeout": option("lock_timeout"),
            "statement_timeout": option("statement_timeout"),
        },
    )
    connection = await connect(engine)
    try:
        await take_turn(connection)
        await run(connection, settings.identity)
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
    try:
        await advisory_locks.acquire(
            connection,
            advisory_locks.MIGRATE,
            seconds=float(option("turn_seconds")),
            on_wait=lambda: log.info("another migration is running; waiting for its end"),
        )
    except TimeoutError:
        raise CommandError(
            "another migration is still running; gave up waiting for its end"
        ) from None


async def run(connection: AsyncConnection, identity: Identity) -> None:
    """Run the migrations, again from the start where a lock was not to be had in time."""
    attempts = int(option("attempts"))
    for attempt in range(1, attempts + 1):
        try:
            await connection.run_sync(run_in_transaction, identity)
            return
        except DBAPIError as error:
            await connection.rollback()
            state = getattr(error.orig, "sqlstate", None)
            if state == READ_ONLY:
                raise CommandError(
                    "nothing was migrated: the database is read-only, as a standby is"
                ) from None
            if state not in {LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED}:
                raise
            if attempt == attempts:
                raise CommandError(
                    f"a table stayed locked in {attempts} attempts; nothing was migrated."
                    " Look for long transactions in pg_stat_activity, then run this again"
                ) from error
            log.warning("a table is locked; attempt %d of %d failed", attempt, attempts)
            await asyncio.sleep(attempt)  # let the readers through that queued up behind us


def run_in_transaction(connection: Connection, identity: Identity) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        if not changes_revision():
            context.run_migrations()
            return
        found = context.get_context().get_current_heads()
        if is_upgrade() and (unknown := [each for each in found if not is_known(each)]):
            log.info(
                "nothing to migrate: the database is at revision %s, which is newer than this code",
                ", ".join(unknown),
            )
            if identity.has_own_database:  # a clone, which must change hands all the same
                claim(connection, identity)
            return
        may_claim = require_ownership(connection, identity, found)
        context.run_migrations()
        if may_claim and identity.name:
            claim(connection, identity)


def changes_revision() -> bool:
    """Tell whether the command is one like `upgrade`, and not one like `check` or `current`."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    except CommandError:  # the revision it names does not exist, which the command itself reports
        return True
    return True


def is_upgrade() -> bool:
    command = getattr(config.cmd_opts, "cmd", None)  # None where a program calls Alembic
    return command is None or command[0].__name__ == "upgrade"


def is_known(revision: str) -> bool:
    try:
        return context.script.get_revision(revision) is not None
    except CommandError:
        return False


def require_ownership(connection: Connection, identity: Identity, found: tuple[str, ...]) -> bool:
    """Check that this environment may migrate the database; return whether it may claim it.

    Args:
        connection: to the database.
        identity: the environment of this process.
        found: the revisions that the database is at; empty for a new one.

    Raises:
        CommandError: the database belongs to another environment, and has something to migrate.
    """
    owner = read_owner(connection)
    if owner is None and (not found or identity.is_named):
        return True
    try:
        require_owner(owner, identity)
    except ForeignDatabaseError as error:
        if found == (context.get_revision_argument(),):
            return False
        raise CommandError(f"nothing was migrated. {error}") from None
    return owner is None or identity.has_own_database


def claim(connection: Connection, identity: Identity) -> None:
    """Record that the database belongs to this environment."""
    if not connection.scalar(text(HAS_OWNER_TABLE)):
        return  # a downgrade has dropped the table
    before = read_owner(connection)
    claimed = connection.execute(
        UPSERT_OWNER, {"environment": identity.name, "type": identity.type}
    ).rowcount
    if claimed:
        previous = f"; before, it belonged to {before}" if before else ""
        log.info("the database belongs to the environment %s now%s", identity.name, previous)


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
