"""Take over the database in one transaction."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.adopt import mirror
from app.adopt.events import ADOPTED
from app.adopt.plan import Plan, Wishes, make_plan
from app.adopt.shape import SCHEMA, AdoptError, Choices, Shape, quote, read_shape
from app.user.models import User
from quart_upsun.database import LOCK_NOT_AVAILABLE, READ_ONLY, advisory_locks, unpooled_engine
from quart_upsun.security.models import AuditEvent

T = TypeVar("T")

BATCH_SIZE = 1000  # rows per INSERT
ATTEMPTS = 5


@dataclass(frozen=True)
class Takeover:
    """A run of `quart adopt`.

    Args:
        url: the database.
        root: the directory of `alembic.ini`, whose timeouts apply.
        choices: what the caller says about the tables.
        wishes: what the caller decides about users.
        report: called with a line while something waits.
    """

    url: URL
    root: Path
    choices: Choices
    wishes: Wishes
    report: Callable[[str], None]

    async def examine(self) -> Plan:
        """Return what `run()` would do, without locking or changing anything.

        Raises:
            AdoptError: the database cannot be adopted. The same applies to `run()`.
        """

        def read(connection: Connection) -> Plan:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            plan = make_plan(connection, read_shape(connection, self.choices), self.wishes)
            list(mirror.statements(plan.shape))  # raises if a column has no default
            return plan

        return await self._connected(read)

    async def run(self) -> Plan:
        """Adopt the database; return what was done.

        Nothing is changed if an error is raised, or if the process is killed.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._connected(self._adopt, acquire=True)
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state == READ_ONLY:
                    raise AdoptError("Nothing was changed: the database is read-only.") from None
                if state != LOCK_NOT_AVAILABLE:
                    raise
                self.report(f"A table is locked; attempt {attempt} of {ATTEMPTS} failed.")
                await asyncio.sleep(attempt)  # let queries run that waited behind the lock
        raise AdoptError(
            f"Nothing was changed: a table stayed locked in {ATTEMPTS} attempts. Stop the old"
            " application, or look for long transactions in pg_stat_activity, and run this again."
        )

    async def _connected(self, work: Callable[[Connection], T], *, acquire: bool = False) -> T:
        """Run `work` in a transaction, with the migration lock if `acquire` is set."""
        config = self._config()
        engine = unpooled_engine(
            self.url,
            name="quart adopt",
            settings={
                name: str(config.get_main_option(name))
                for name in ("lock_timeout", "statement_timeout")
            },
        )
        try:
            async with engine.connect() as connection:
                if acquire:
                    await self._take_turn(
                        connection, float(str(config.get_main_option("turn_seconds")))
                    )
                async with connection.begin():
                    return await connection.run_sync(work)
        finally:
            await engine.dispose()

    async def _take_turn(self, connection: AsyncConnection, seconds: float) -> None:
        try:
            await advisory_locks.acquire(
                connection,
                advisory_locks.MIGRATE,
                seconds=seconds,
                on_wait=lambda: self.report("A migration is running; waiting for it to finish."),
            )
        except TimeoutError:
            raise AdoptError(
                "Nothing was changed: a migration did not finish. Run this again when it has."
            ) from None

    def _config(self) -> Config:
        config = Config(str(self.root / "alembic.ini"))
        config.set_main_option("script_location", str(self.root / "alembic"))
        return config

    def _adopt(self, connection: Connection) -> Plan:
        shape = read_shape(connection, self.choices)
        # Moving the table takes the lock anyway, and no user may be added after they are read.
        connection.exec_driver_sql(f"LOCK TABLE {quote(shape.table)} IN ACCESS EXCLUSIVE MODE")
        plan = make_plan(connection, shape, self.wishes)
        move_tables(connection, shape)
        config = self._config()
        config.attributes["connection"] = connection  # read by alembic/env.py
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise AdoptError(f"Nothing was changed. {error}") from None
        insert_users(connection, plan)
        mirror.rename(
            connection, shape, {change.id: change.new for change in plan.renamed if change.old}
        )
        mirror.create(connection, shape)
        return plan


def move_tables(connection: Connection, shape: Shape) -> None:
    """Move everything to the schema `flask`; rows, keys and indexes stay as they are."""
    connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
    for kind, name in shape.relations:
        connection.exec_driver_sql(f"ALTER {kind} {quote(name)} SET SCHEMA {SCHEMA}")
    for routine in shape.routines:
        connection.exec_driver_sql(f"ALTER ROUTINE {routine} SET SCHEMA {SCHEMA}")


def insert_users(connection: Connection, plan: Plan) -> None:
    """Insert the users with their ids, and let new ids begin after all that were ever used."""
    now = connection.scalar(text("SELECT now()"))
    rows: list[dict[str, Any]] = [
        {
            "id": user.id,
            "username": user.username,
            "email": user.email,
            "pending_email": user.pending_email,
            "password_hash": user.password_hash,
            "role": user.role,
            "deactivated_at": None if user.is_active else now,
            "created_at": user.created_at or now,
        }
        for user in plan.users
    ]
    names = list(rows[0]) if rows else []
    columns, values = ", ".join(names), ", ".join(f":{name}" for name in names)
    # The ids are generated otherwise.
    statement = text(
        f"INSERT INTO {User.__tablename__} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({values})"
    )
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        connection.execute(statement, batch)
        connection.execute(
            insert(AuditEvent), [{"kind": ADOPTED, "user_id": row["id"]} for row in batch]
        )
    old_table = f"{SCHEMA}.{quote(plan.shape.table)}"
    last_id = connection.scalar(
        text(
            "SELECT greatest((SELECT max(id) FROM users), pg_sequence_last_value("
            "CAST(pg_get_serial_sequence(:table, 'id') AS regclass)))"
        ),
        {"table": old_table},
    )
    if last_id is not None:
        connection.execute(
            text("SELECT setval(pg_get_serial_sequence('users', 'id'), :last)"), {"last": last_id}
        )
    if connection.scalar(select(func.count(User.id))) != len(rows):
        raise AdoptError("Nothing was changed: not all users could be copied.")
