"""Alembic environment: run migrations one process at a time, with lock timeouts and retries.

Migrates only a database that belongs to this environment; does nothing if the database is ahead of
this code. Works on the command line, and when called inside a running event loop.
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
        raise CommandError(f"alembic.ini does not set {name}")
    return value


load_models("app")

if not logging.getLogger().handlers:  # on the command line; an application configures its own
    logging.basicConfig(stream=sys.stderr, format="%(levelname)-5s %(message)s", level="INFO")
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


def print_sql() -> None:
    """Print the SQL instead of running it (`--sql`)."""
    context.configure(
        dialect_name="postgresql",
        target_metadata=Base.metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    with context.begin_transaction():
        context.run_migrations()


async def migrate() -> None:
    """Connect, take the migration lock and run the migrations."""
    settings: DatabaseSettings = load_database_settings()
    engine = unpooled_engine(
        settings.direct_url,
        name="alembic",
        # Set as defaults of the session, so that `RESET` in a migration restores them.
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
    """Connect; retry while the database is starting.

    Raises:
        CommandError: the database did not accept a connection within `connect_seconds`.
    """
    deadline = time.monotonic() + float(option("connect_seconds"))
    while True:
        try:
            return await engine.connect()
        except (OSError, PostgresError, DBAPIError) as error:
            if time.monotonic() > deadline:
                raise CommandError(f"the database cannot be reached: {error}") from error
            log.warning("the database cannot be reached, retrying: %s", error)
            await asyncio.sleep(1)


async def take_turn(connection: AsyncConnection) -> None:
    """Take the advisory lock that serializes migrations.

    It is taken before the current revision is read, so a process that waited sees the work of the
    previous one.

    Raises:
        CommandError: another migration held the lock for `turn_seconds`.
    """
    try:
        await advisory_locks.acquire(
            connection,
            advisory_locks.MIGRATE,
            seconds=float(option("turn_seconds")),
            on_wait=lambda: log.info("another migration is running; waiting for it to finish"),
        )
    except TimeoutError:
        raise CommandError(
            "timed out waiting for another migration; run this again when it has finished"
        ) from None


async def run(connection: AsyncConnection, identity: Identity) -> None:
    """Run the migrations; retry them after a lock timeout or a deadlock.

    Raises:
        CommandError: the database is read-only, or all attempts failed.
    """
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
                    "nothing was migrated: the database is read-only, for instance a standby server"
                ) from None
            if state not in {LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED}:
                raise
            if attempt == attempts:
                raise CommandError(
                    f"nothing was migrated: a table stayed locked in {attempts} attempts."
                    " Look for long transactions in pg_stat_activity, then run this again"
                ) from error
            log.warning("a table is locked; attempt %d of %d failed", attempt, attempts)
            await asyncio.sleep(attempt)  # let queries run that waited behind the lock


def run_in_transaction(connection: Connection, identity: Identity) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        if not changes_revision():
            context.run_migrations()
            return
        found = context.get_context().get_current_heads()
        if is_upgrade():
            require_own_tables(connection, found)
        if is_upgrade() and (unknown := [each for each in found if not is_known(each)]):
            log.info(
                "nothing to migrate: the database is at revision %s, which is newer than this code",
                ", ".join(unknown),
            )
            if identity.has_own_database:  # a clone must be claimed even if it is ahead
                claim(connection, identity)
            return
        may_claim = require_ownership(connection, identity, found)
        context.run_migrations()
        if may_claim and identity.name:
            claim(connection, identity)


def changes_revision() -> bool:
    """Return whether the command changes the revision (`upgrade`), unlike `check` or `current`."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    except CommandError:  # an unknown revision, which the command itself reports
        return True
    return True


def is_upgrade() -> bool:
    command = getattr(config.cmd_opts, "cmd", None)  # None if called from code
    return command is None or command[0].__name__ == "upgrade"


def is_known(revision: str) -> bool:
    try:
        return context.script.get_revision(revision) is not None
    except CommandError:
        return False


def require_own_tables(connection: Connection, found: tuple[str, ...]) -> None:
    """Check that the tables of the database are this application's.

    Args:
        connection: a connection to the database.
        found: the current revisions of the database.

    Raises:
        CommandError: they are another application's.
    """
    if connection.scalar(text(HAS_OWNER_TABLE)) or any(map(is_known, found)):
        return
    if found or connection.scalar(text("SELECT to_regclass('users') IS NOT NULL")):
        revision = f" (revision {', '.join(found)})" if found else ""
        raise CommandError(
            f"nothing was migrated: the database has the tables of another application{revision}."
            " If it is a Flask application, `quart adopt` takes over its users"
        )


def require_ownership(connection: Connection, identity: Identity, found: tuple[str, ...]) -> bool:
    """Check that this environment may migrate the database; return whether it may claim it.

    Args:
        connection: a connection to the database.
        identity: the environment of this process.
        found: the current revisions of the database; empty for a new one.

    Raises:
        CommandError: the database belongs to another environment and is not up to date.
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
        return  # dropped by a downgrade
    before = read_owner(connection)
    claimed = connection.execute(
        UPSERT_OWNER, {"environment": identity.name, "type": identity.type}
    ).rowcount
    if claimed:
        previous = f" (previously to {before})" if before else ""
        log.info("the database now belongs to the environment %s%s", identity.name, previous)


def main() -> None:
    if context.is_offline_mode():
        print_sql()
        return
    if connection := config.attributes.get("connection"):  # the caller's transaction
        run_in_transaction(connection, load_database_settings().identity)
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(migrate())
    else:  # Alembic's commands are synchronous, so run in another thread with its own event loop
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, migrate()).result()


main()
