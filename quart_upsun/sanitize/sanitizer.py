"""Ends and replaces, in a preview's copy of production's data, what tells about people.

By batches of rows, each a transaction that also notes how far it went: a run that was killed goes
on where it was. One run at a time, and once for each environment.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from asyncpg import PostgresError
from sqlalchemy import URL, Index, String, Table, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import dialect as postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import DeclarativeBase

from quart_upsun.database import UNDEFINED_OBJECT, Base, advisory_locks, unpooled_engine
from quart_upsun.database.anonymization import EMPTIED, KEPT, Rules
from quart_upsun.database.ownership import ForeignDatabaseError, Identity, read_owner, require_owner

# Rows. Bounds what a kill undoes; half a second or less, even on a small database.
BATCH = 10_000
REPORT_SECONDS = 3.0
CONNECT_SECONDS = 30.0  # patience with a database that is starting, as after a restore
TURN_SECONDS = 900.0
# Longer than any statement of the application, which is the only one that may be in the way.
LOCK_TIMEOUT = "30s"
# Guards against a hang; what runs long here is a look at a whole table.
STATEMENT_TIMEOUT = "10min"

Report = Callable[[str], None]

_quote = postgresql().identifier_preparer.quote  # type: ignore[no-untyped-call]


class SanitizeError(Exception):
    """The data are not sanitized; the message is one sentence, without values of rows."""


@dataclass
class Plan:
    """What is to be done to the tables of a database."""

    updates: list["Update"] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    """Emptied as well, row by row: PostgreSQL truncates no table that another one refers to."""

    @property
    def emptied(self) -> list[str]:
        return self.truncated + self.deleted


@dataclass
class Update:
    """What is to be done to the rows of a table."""

    table: str
    key: str | None
    """The primary key, an integer; None where all rows are changed at once."""
    assignments: dict[str, str]
    """SQL by column."""
    unique: list[tuple[list[str], list[str]]]
    """The columns and expressions of each unique index of which a column is replaced."""


def sanitize_rules(base: type[DeclarativeBase]) -> dict[str, Rules | None]:
    """Return what each table's model says in `__sanitize__`, None where nobody does."""
    found: dict[str, Rules | None] = dict.fromkeys(base.metadata.tables)
    for mapper in base.registry.mappers:
        if isinstance(mapper.local_table, Table):
            found[mapper.local_table.name] = getattr(mapper.class_, "__sanitize__", None)
    return found


def find_rule_errors(base: type[DeclarativeBase]) -> list[str]:
    """Say which tables and columns are not classified as they should be."""
    found = []
    known = sanitize_rules(base)
    for name, rule in known.items():
        table = base.metadata.tables[name]
        if rule is None:
            found.append(f"{name}: its model has no __sanitize__")
        elif isinstance(rule, str):
            if rule != EMPTIED:
                found.append(f"{name}: {rule!r} is not known")
        else:
            columns = set(table.columns.keys())
            found += [f"{name}.{column} is not classified" for column in sorted(columns - {*rule})]
            found += [f"{name} has no column {column}" for column in sorted({*rule} - columns)]
            changed = {column for column, each in rule.items() if each != KEPT} & columns
            if changed and _integer_key(table) is None:
                found.append(f"{name}: rows cannot be changed without one integer as primary key")
            found += [
                f"{name}.{column.name} is unique and replaced, but holds no text"
                for index in _unique(table)
                for column in index.columns
                if column.name in changed and not isinstance(column.type, String)
            ]
            nulls = {column for column, each in rule.items() if each.expression == "NULL"}
            found += [
                f"{name}.{column.name} refers to {key.column.table.name}, which is emptied,"
                ' and must be ended("NULL")'
                for column in table.columns
                for key in column.foreign_keys
                if known.get(key.column.table.name) == EMPTIED and column.name not in nulls
            ]
    return found


async def sanitize(url: URL, identity: Identity, say: Report) -> None:
    """Sanitize the database at `url` for an environment, if that was not done before.

    Args:
        url: of the database, in the form of the asyncpg dialect.
        identity: the preview, for which the run is recorded.
        say: is given each line about the progress.

    Raises:
        SanitizeError: it could not be done to the end, or the database belongs to another
            environment.
    """
    environment = identity.name
    engine = unpooled_engine(
        url,
        name="sanitize",
        settings={
            "lock_timeout": LOCK_TIMEOUT,
            "statement_timeout": STATEMENT_TIMEOUT,
            "jit": "off",
        },
    )
    try:
        async with _connect_with_retries(engine, say) as connection:
            owner = await connection.run_sync(read_owner)
            await connection.rollback()
            require_owner(owner, identity)
            if not await _is_finished(connection, environment, say):
                await _acquire_lock(connection, say)
                if not await _is_finished(connection, environment, say):
                    await SanitizeRun(connection, environment, say).work()
    except ForeignDatabaseError as error:
        raise SanitizeError(f"Nothing was sanitized. {error}") from None
    except DBAPIError as error:
        raise SanitizeError(_sentence(error)) from None
    except (OSError, TimeoutError, PostgresError):
        raise SanitizeError(
            "The connection to the database was lost; the next run goes on where this one was."
        ) from None
    finally:
        await engine.dispose()


class SanitizeRun:
    """The work on a database, begun or gone on with."""

    def __init__(self, connection: AsyncConnection, environment: str, say: Report) -> None:
        self.connection = connection
        self.environment = environment
        self.say = say
        self.said = self.begun = time.monotonic()
        self.rows = 0

    async def work(self) -> None:
        plan = await make_plan(self.connection)
        table, position = await self.begin()
        names = [update.table for update in plan.updates]
        first = names.index(table) if table in names else 0
        if table in names:
            self.say(f"Going on in {table}, where the last run ended.")
        for number, update in enumerate(plan.updates[first:]):
            await self.update(update, position if table in names and number == 0 else 0)
        await self.empty(plan)
        await self.forget(plan)
        await self._execute(
            "UPDATE sanitizations SET finished_at = now() WHERE environment = :environment",
            environment=self.environment,
        )
        await self.connection.commit()
        self.say(
            f"Sanitized {self.environment} in {time.monotonic() - self.begun:.1f} s:"
            f" {self.rows:,} rows of {_join_names(names)} changed,"
            f" {_join_names(plan.emptied)} emptied."
        )

    async def begin(self) -> tuple[str | None, int]:
        """Note that the work has begun, and return where a run before has ended."""
        row = (
            await self._execute(
                "INSERT INTO sanitizations (environment) VALUES (:environment)"
                " ON CONFLICT (environment) DO UPDATE SET finished_at = NULL"
                ' RETURNING "table", position',
                environment=self.environment,
            )
        ).one()
        await self.connection.commit()
        return row[0], row[1]

    async def update(self, update: Update, position: int) -> None:
        """Change the rows of a table whose keys are above `position`."""
        table = _quote(update.table)
        changes = ", ".join(f"{_quote(name)} = {sql}" for name, sql in update.assignments.items())
        if update.key is None:
            self.rows += (await self._execute(f"UPDATE {table} SET {changes}")).rowcount  # noqa: S608
            await self.connection.commit()
            return
        key = _quote(update.key)
        await self.clear_the_way(update, key, position)
        total = await self._scalar(
            f"SELECT count(*) FROM {table} WHERE {key} > :position",  # noqa: S608
            position=position,
        )
        done = 0
        while True:
            # By the index, and not by the rows that this run has left behind.
            last = await self._scalar(
                f"SELECT max({key}) FROM (SELECT {key} FROM {table}"  # noqa: S608
                f" WHERE {key} > :position ORDER BY {key} LIMIT {BATCH}) AS batch",
                position=position,
            )
            if last is None:
                break
            result = await self._execute(
                f"UPDATE {table} SET {changes} WHERE {key} > :position AND {key} <= :last",  # noqa: S608
                position=position,
                last=last,
            )
            await self._execute(
                'UPDATE sanitizations SET "table" = :table, position = :last'
                " WHERE environment = :environment",
                table=update.table,
                last=last,
                environment=self.environment,
            )
            await self.connection.commit()
            position = last
            done += result.rowcount
            self.report(f"{update.table}: {done:,} of {total:,} rows")
        await self.connection.rollback()
        self.rows += done

    async def clear_the_way(self, update: Update, key: str, position: int) -> None:
        """Rename the rows that have, in a unique column, what another row is about to get.

        Somebody may be called user-7 while the user with the number 7 becomes user-7. No value of
        an application begins with a number sign, and each row's new name has its own key.
        """
        table = _quote(update.table)
        for columns, expressions in update.unique:
            new = ", ".join(
                f"{update.assignments.get(name, _quote(name))} AS {_quote(name)}"
                for name in columns
            )
            keys = ", ".join(f"{sql} AS key_{n}" for n, sql in enumerate(expressions))
            same = " AND ".join(f"{sql} = wanted.key_{n}" for n, sql in enumerate(expressions))
            names = ", ".join(
                f"{_quote(name)} = '#' || {table}.{key}"
                for name in columns
                if name in update.assignments
            )
            # The inner table has the outer one's name, so that the index's expressions fit both.
            await self._execute(
                f"UPDATE {table} SET {names} FROM ("  # noqa: S608
                f"SELECT {table}.{key} AS owner, {keys} FROM ("
                f"SELECT {key}, {new} FROM {table} WHERE {key} > :position) AS {table}"
                f") AS wanted WHERE {same} AND {table}.{key} <> wanted.owner",
                position=position,
            )
            await self.connection.commit()
            self.report(f"{update.table}: names that are in the way")

    async def empty(self, plan: Plan) -> None:
        """Empty tables, now that no row of another one refers to them.

        Last, because triggers of a later release may write down in them what a row was before.
        """
        truncate = f"TRUNCATE {', '.join(map(_quote, plan.truncated))}" if plan.truncated else ""
        # In one statement, after which foreign keys are checked: these may refer to each other.
        deletes = [f"DELETE FROM {_quote(table)}" for table in plan.deleted]  # noqa: S608
        parts = ", ".join(f"part_{n} AS ({sql})" for n, sql in enumerate(deletes))
        delete = f"WITH {parts} SELECT" if deletes else ""
        # Asked for by the trigger that lets nobody change the audit trail by mistake.
        await self._execute("SET LOCAL app.audit_maintenance = 'on'")
        # The truncated tables may refer to the others, whose triggers may write to them.
        for statement in filter(None, (truncate, delete, delete and truncate)):
            await self._execute(statement)
        await self.connection.commit()

    async def forget(self, plan: Plan) -> None:
        """Remove what PostgreSQL has noted about values, and the rows as they were before."""
        # An empty table's statistics outlive an ANALYZE.
        await self._execute(
            "SELECT count(*) FROM (SELECT pg_clear_attribute_stats("
            " schemaname::text, tablename::text, attname::text, inherited)"
            " FROM pg_stats WHERE schemaname = current_schema()) AS cleared"
        )
        await self.connection.commit()
        outside = await self.connection.execution_options(isolation_level="AUTOCOMMIT")
        for table in [*(update.table for update in plan.updates), *plan.deleted]:
            self.report(f"{table}: clearing up")
            await outside.execute(text(f"VACUUM (ANALYZE) {_quote(table)}"))

    def report(self, line: str) -> None:
        """Say how far it is, every few seconds."""
        now = time.monotonic()
        if now - self.said >= REPORT_SECONDS:
            self.said = now
            self.say(f"{line} ({now - self.begun:.0f} s)")

    async def _execute(self, statement: str, **values: object) -> Any:
        return await self.connection.execute(text(statement), values)

    async def _scalar(self, statement: str, **values: object) -> Any:
        return await self.connection.scalar(text(statement), values)


async def make_plan(connection: AsyncConnection) -> Plan:
    """Compare what the models say with what is there, and tell what is to be done.

    Production may be ahead of a preview's code: tables that no model knows are emptied, and columns
    that none knows get their default, or NULL where they refer to a table that is emptied.

    Raises:
        SanitizeError: the schema is behind, the models are not classified, or something is there
            that cannot be sanitized.
    """
    if wrong := find_rule_errors(Base):
        raise SanitizeError(f"The models do not say what to do: {'; '.join(wrong)}.")
    there = await _columns(connection)
    missing = [
        f"{table.name}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if column.name not in there.get(table.name, ())
    ]
    if missing:
        raise SanitizeError(_stale_message(missing[0]))
    if beyond := await _unreachable_tables(connection):
        raise SanitizeError(
            f"What these hold cannot be sanitized: {', '.join(beyond)};"
            " drop them in this preview, or keep it in tables beside the application's own."
        )
    known = sanitize_rules(Base)
    kept = {name for name, rule in known.items() if isinstance(rule, dict)} | {"alembic_version"}
    emptied = there.keys() - kept
    references = await _references(connection)
    referred = {each.target for each in references if each.table not in emptied}
    while more := {each.target for each in references if each.table in referred} - referred:
        referred |= more
    plan = Plan(truncated=sorted(emptied - referred), deleted=sorted(emptied & referred))
    for table in Base.metadata.sorted_tables:
        rule = known[table.name]
        if not isinstance(rule, dict):
            continue
        changes = {name: each.expression for name, each in rule.items() if each.expression}
        changes |= dict.fromkeys(there[table.name] - rule.keys(), "DEFAULT")
        for each in references:
            if each.table == table.name and each.target in emptied:
                changes |= dict.fromkeys(each.nullable - rule.keys(), "NULL")
                if all(changes.get(column) != "NULL" for column in each.nullable):
                    raise SanitizeError(
                        f"{each.target} is to be emptied, but {table.name} has {each.definition}"
                        " and no column of it may become NULL; deploy a release that knows both."
                    )
        if not changes:
            continue
        plan.updates.append(
            Update(table.name, _integer_key(table), changes, _unique_of(table, changes))
        )
    return plan


async def _columns(connection: AsyncConnection) -> dict[str, set[str]]:
    """Return the columns that can be set, by table; without the tables of extensions."""
    rows = await connection.execute(
        text(
            "SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid"
            " WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')"
            " AND NOT relispartition AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass"
            " AND objid = pg_class.oid AND deptype = 'e')"
        )
    )
    found: dict[str, set[str]] = {}
    for table, column in rows:
        found.setdefault(table, set()).add(column)
    return found


@dataclass
class Reference:
    """A foreign key."""

    table: str
    target: str
    definition: str
    nullable: set[str]
    """Those of its columns that can be NULL."""


async def _references(connection: AsyncConnection) -> list[Reference]:
    """Return the foreign keys; those of partitions as their whole table's."""
    rows = await connection.execute(
        text(
            "SELECT source.relname, target.relname, pg_get_constraintdef(pg_constraint.oid),"
            " ARRAY(SELECT attname FROM pg_attribute WHERE attrelid = conrelid"
            " AND attnum = ANY (conkey) AND NOT attnotnull AND attgenerated = '')"
            " FROM pg_constraint"
            " JOIN pg_class AS source"
            " ON source.oid = coalesce(pg_partition_root(conrelid), conrelid)"
            " JOIN pg_class AS target"
            " ON target.oid = coalesce(pg_partition_root(confrelid), confrelid)"
            " WHERE contype = 'f' AND source.relnamespace = current_schema()::regnamespace"
            " AND target.relnamespace = current_schema()::regnamespace ORDER BY conname"
        )
    )
    return [Reference(row[0], row[1], row[2], {*row[3]}) for row in rows]


async def _unreachable_tables(connection: AsyncConnection) -> list[str]:
    """Name what holds data, is not of an extension, and is no table that `_columns` sees."""
    rows = await connection.scalars(
        text(
            "SELECT CASE relkind WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'"
            " ELSE 'table' END || ' ' || nspname || '.' || relname AS name"
            " FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
            " WHERE (relkind IN ('m', 'f') OR relkind IN ('r', 'p') AND NOT relispartition"
            " AND nspname <> current_schema())"
            # Only PostgreSQL's own begin like this: the catalog's, TOAST's and temporary ones.
            " AND NOT starts_with(nspname, 'pg_') AND nspname <> 'information_schema'"
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass"
            " AND objid = pg_class.oid AND deptype = 'e')"
            " UNION ALL SELECT 'large objects (' || count(*) || ')' FROM pg_largeobject_metadata"
            " HAVING count(*) > 0 ORDER BY name"
        )
    )
    return list(rows)


def _unique(table: Table) -> list[Index | UniqueConstraint]:
    return [
        *(index for index in table.indexes if index.unique),
        *(each for each in table.constraints if isinstance(each, UniqueConstraint)),
    ]


def _unique_of(table: Table, changes: dict[str, str]) -> list[tuple[list[str], list[str]]]:
    found = []
    for index in _unique(table):
        columns = [column.name for column in index.columns]
        if {name for name, sql in changes.items() if sql != "DEFAULT"} & {*columns}:
            parts = index.expressions if isinstance(index, Index) else index.columns
            expressions = [
                str(part.compile(dialect=postgresql()))  # type: ignore[no-untyped-call]
                for part in parts
                if not isinstance(part, str)
            ]
            found.append((columns, expressions))
    return sorted(found)


def _integer_key(table: Table) -> str | None:
    match list(table.primary_key.columns):
        case [column] if column.type.python_type is int:
            return column.name
    return None


@asynccontextmanager
async def _connect_with_retries(engine: AsyncEngine, say: Report) -> AsyncIterator[AsyncConnection]:
    deadline = time.monotonic() + CONNECT_SECONDS
    waiting = False
    while True:
        try:
            connection = await engine.connect()
            break
        except (OSError, PostgresError, DBAPIError) as error:
            if time.monotonic() > deadline:
                raise SanitizeError(
                    f"The database cannot be reached: {type(error).__name__}."
                ) from None
            if not waiting:
                waiting = True
                say("The database cannot be reached yet; waiting for it.")
            await asyncio.sleep(1)
    try:
        yield connection
    finally:
        await connection.close()  # ends the database session, and with it the lock


async def _acquire_lock(connection: AsyncConnection, say: Report) -> None:
    """Take the lock that lets one run work at a time."""
    try:
        await advisory_locks.acquire(
            connection,
            advisory_locks.SANITIZE,
            seconds=TURN_SECONDS,
            on_wait=lambda: say("Another run is at work; waiting for its end."),
        )
    except TimeoutError:
        raise SanitizeError("Another run is still at work; gave up waiting for its end.") from None


async def _is_finished(connection: AsyncConnection, environment: str, say: Report) -> bool:
    finished = await connection.scalar(
        text("SELECT finished_at FROM sanitizations WHERE environment = :environment"),
        {"environment": environment},
    )
    await connection.rollback()
    if finished is not None:
        say(f"{environment} was sanitized at {finished:%Y-%m-%d %H:%M} UTC; nothing is to be done.")
    return finished is not None


def _sentence(error: DBAPIError) -> str:
    """Say what went wrong; PostgreSQL's own words may quote a row."""
    original: Any = getattr(error.orig, "__cause__", None) or error.orig
    state = getattr(original, "sqlstate", None)
    if state in UNDEFINED_OBJECT:
        return _stale_message("something of this release")
    if error.connection_invalidated:
        return "The connection to the database was lost; the next run goes on where this one was."
    place = [
        getattr(original, name, None)
        for name in ("schema_name", "table_name", "column_name", "constraint_name")
    ]
    where = ".".join(filter(None, place[:3])) + (f" ({place[3]})" if place[3] else "")
    return (
        f"PostgreSQL refused a statement: {type(original).__name__}{where and f' at {where}'};"
        " the next run goes on where this one was."
    )


def _stale_message(what: str) -> str:
    return f"The schema lacks {what}: it must be migrated first (`alembic upgrade head`)."


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(names) or "no table"
