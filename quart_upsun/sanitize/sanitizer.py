"""Anonymize a preview's copy of production's data.

Rows are updated in batches. Each batch is a transaction that also records the progress, so that an
interrupted run can be resumed. Only one run works at a time, and it finishes once per environment.
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
from quart_upsun.database.anonymization import EMPTIED, EMPTIED_SCHEMAS, KEPT, Rules
from quart_upsun.database.ownership import ForeignDatabaseError, Identity, read_owner, require_owner

# Rows per transaction: half a second or less, even on a small database.
BATCH_SIZE = 10_000
REPORT_SECONDS = 3.0
CONNECT_TIMEOUT_SECONDS = 30.0  # a database may still be starting, for instance after a restore
RUN_LOCK_TIMEOUT_SECONDS = 900.0
# Longer than any statement of the application, which may hold a lock.
LOCK_TIMEOUT = "30s"
# Some statements read a whole table.
STATEMENT_TIMEOUT = "10min"

Report = Callable[[str], None]

_quote = postgresql().identifier_preparer.quote  # type: ignore[no-untyped-call]


class SanitizeError(Exception):
    """The data is not sanitized. The message contains no values of rows."""


@dataclass
class Plan:
    """The changes to the tables of a database."""

    updates: list["Update"] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    """Tables to empty with DELETE: a foreign key refers to them, so TRUNCATE would fail."""
    elsewhere: list[str] = field(default_factory=list)
    """Tables to empty in `EMPTIED_SCHEMAS`, as SQL."""

    @property
    def emptied(self) -> list[str]:
        return self.truncated + self.deleted + self.elsewhere


@dataclass
class Update:
    """The changes to the rows of a table."""

    table: str
    key: str | None
    """The integer primary key; None if all rows are updated in one statement."""
    assignments: dict[str, str]
    """SQL expressions by column."""
    unique: list[tuple[list[str], list[str]]]
    """The columns and expressions of each unique index with a replaced column."""


def sanitize_rules(base: type[DeclarativeBase]) -> dict[str, Rules | None]:
    """Return `__sanitize__` of each table's model; None if it has none."""
    found: dict[str, Rules | None] = dict.fromkeys(base.metadata.tables)
    for mapper in base.registry.mappers:
        if isinstance(mapper.local_table, Table):
            found[mapper.local_table.name] = getattr(mapper.class_, "__sanitize__", None)
    return found


def find_rule_errors(base: type[DeclarativeBase]) -> list[str]:
    """Return a message for each missing or invalid rule in `__sanitize__`."""
    found = []
    known = sanitize_rules(base)
    for name, rule in known.items():
        table = base.metadata.tables[name]
        if rule is None:
            found.append(f"{name}: add __sanitize__ to its model, such as __sanitize__ = EMPTIED")
        elif isinstance(rule, str):
            if rule != EMPTIED:
                found.append(f"{name}: {rule!r} is not a valid rule")
        else:
            columns = set(table.columns.keys())
            found += [f"{name}.{column} has no rule" for column in sorted(columns - {*rule})]
            found += [f"{name} has no column {column}" for column in sorted({*rule} - columns)]
            changed = {column for column, each in rule.items() if each != KEPT} & columns
            if changed and _integer_key(table) is None:
                found.append(f"{name}: updating rows requires a primary key of one integer")
            found += [
                f"{name}.{column.name} is unique and replaced, but is not a text column"
                for index in _unique(table)
                for column in index.columns
                if column.name in changed and not isinstance(column.type, String)
            ]
            nulls = {column for column, each in rule.items() if each.expression == "NULL"}
            found += [
                f"{name}.{column.name} refers to {key.column.table.name}, which is emptied, so"
                ' its rule must be ended("NULL")'
                for column in table.columns
                for key in column.foreign_keys
                if known.get(key.column.table.name) == EMPTIED and column.name not in nulls
            ]
    return found


async def sanitize(url: URL, identity: Identity, report: Report) -> None:
    """Sanitize a database, unless that was done before for this environment.

    Args:
        url: the URL of the database, for the asyncpg dialect.
        identity: the preview, for which the run is recorded.
        report: called with each line about the progress.

    Raises:
        SanitizeError: the run failed, or the database belongs to another environment.
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
        async with _connect_with_retries(engine, report) as connection:
            owner = await connection.run_sync(read_owner)
            await connection.rollback()
            require_owner(owner, identity)
            if not await _is_finished(connection, environment, report):
                await _acquire_lock(connection, report)
                if not await _is_finished(connection, environment, report):
                    await SanitizeRun(connection, environment, report).run()
    except ForeignDatabaseError as error:
        raise SanitizeError(f"Nothing was sanitized. {error}") from None
    except DBAPIError as error:
        raise SanitizeError(_error_message(error)) from None
    except (OSError, TimeoutError, PostgresError):
        raise SanitizeError(
            "The connection to the database was lost. Run the command again to resume."
        ) from None
    finally:
        await engine.dispose()


class SanitizeRun:
    """A new or resumed run on a database."""

    def __init__(self, connection: AsyncConnection, environment: str, report: Report) -> None:
        self.connection = connection
        self.environment = environment
        self.report = report
        self.reported = self.started = time.monotonic()
        self.rows = 0

    async def run(self) -> None:
        plan = await make_plan(self.connection)
        table, position = await self.start()
        names = [update.table for update in plan.updates]
        first = names.index(table) if table in names else 0
        if table in names:
            self.report(f"Resuming the last run in {table}.")
        for number, update in enumerate(plan.updates[first:]):
            await self.update(update, position if table in names and number == 0 else 0)
        await self.empty(plan)
        await self.vacuum(plan)
        await self._execute(
            "UPDATE sanitizations SET finished_at = now() WHERE environment = :environment",
            environment=self.environment,
        )
        await self.connection.commit()
        self.report(
            f"Sanitized {self.environment} in {time.monotonic() - self.started:.1f} s."
            f" Updated {self.rows:,} rows of {_join_names(names)}."
            f" Emptied {_join_names(plan.emptied)}."
        )

    async def start(self) -> tuple[str | None, int]:
        """Record the start of the run, and return the position of an interrupted run."""
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
        """Update the rows of a table whose keys are above `position`."""
        table = _quote(update.table)
        changes = ", ".join(f"{_quote(name)} = {sql}" for name, sql in update.assignments.items())
        if update.key is None:
            self.rows += (await self._execute(f"UPDATE {table} SET {changes}")).rowcount  # noqa: S608
            await self.connection.commit()
            return
        key = _quote(update.key)
        await self.resolve_conflicts(update, key, position)
        total = await self._scalar(
            f"SELECT count(*) FROM {table} WHERE {key} > :position",  # noqa: S608
            position=position,
        )
        done = 0
        while True:
            # Uses the index, so it does not scan the rows that are already updated.
            last = await self._scalar(
                f"SELECT max({key}) FROM (SELECT {key} FROM {table}"  # noqa: S608
                f" WHERE {key} > :position ORDER BY {key} LIMIT {BATCH_SIZE}) AS batch",
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
            self.report_progress(f"{update.table}: {done:,} of {total:,} rows")
        await self.connection.rollback()
        self.rows += done

    async def resolve_conflicts(self, update: Update, key: str, position: int) -> None:
        """Rename the rows whose unique columns have a value that another row is about to get.

        For instance, a user may be called user-7 while the user with id 7 becomes user-7. The
        temporary value is `#` and the row's key; no value of an application starts with `#`.
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
            # The subquery has the name of the table, so that the index expressions fit both.
            await self._execute(
                f"UPDATE {table} SET {names} FROM ("  # noqa: S608
                f"SELECT {table}.{key} AS owner, {keys} FROM ("
                f"SELECT {key}, {new} FROM {table} WHERE {key} > :position) AS {table}"
                f") AS wanted WHERE {same} AND {table}.{key} <> wanted.owner",
                position=position,
            )
            await self.connection.commit()
            self.report_progress(f"{update.table}: unique values")

    async def empty(self, plan: Plan) -> None:
        """Empty tables, to which no row of another table refers any more.

        This comes last, because triggers of a later release may copy old values into them.
        """
        truncated = [*map(_quote, plan.truncated), *plan.elsewhere]
        truncate = f"TRUNCATE {', '.join(truncated)}" if truncated else ""
        # One statement, because foreign keys between these tables are checked at its end.
        deletes = [f"DELETE FROM {_quote(table)}" for table in plan.deleted]  # noqa: S608
        parts = ", ".join(f"part_{n} AS ({sql})" for n, sql in enumerate(deletes))
        delete = f"WITH {parts} SELECT" if deletes else ""
        # Required by the trigger that protects the audit trail.
        await self._execute("SET LOCAL app.audit_maintenance = 'on'")
        # The truncated tables may refer to the others, whose triggers may insert rows into them.
        for statement in filter(None, (truncate, delete, delete and truncate)):
            await self._execute(statement)
        await self.connection.commit()

    async def vacuum(self, plan: Plan) -> None:
        """Remove the old values from PostgreSQL's statistics and dead rows."""
        # ANALYZE keeps the statistics of an empty table.
        await self._execute(
            "SELECT count(*) FROM (SELECT pg_clear_attribute_stats("
            " schemaname::text, tablename::text, attname::text, inherited)"
            " FROM pg_stats WHERE schemaname = current_schema()"
            " OR schemaname = ANY (:schemas)) AS cleared",
            schemas=sorted(EMPTIED_SCHEMAS),
        )
        await self.connection.commit()
        autocommit = await self.connection.execution_options(isolation_level="AUTOCOMMIT")
        for table in [*(update.table for update in plan.updates), *plan.deleted]:
            self.report_progress(f"{table}: vacuum")
            await autocommit.execute(text(f"VACUUM (ANALYZE) {_quote(table)}"))

    def report_progress(self, line: str) -> None:
        """Report a line, at most once in `REPORT_SECONDS`."""
        now = time.monotonic()
        if now - self.reported >= REPORT_SECONDS:
            self.reported = now
            self.report(f"{line} ({now - self.started:.0f} s)")

    async def _execute(self, statement: str, **values: object) -> Any:
        return await self.connection.execute(text(statement), values)

    async def _scalar(self, statement: str, **values: object) -> Any:
        return await self.connection.scalar(text(statement), values)


async def make_plan(connection: AsyncConnection) -> Plan:
    """Compare the rules of the models with the tables of the database, and plan the changes.

    Production may be ahead of a preview's code. Tables without a model are emptied. Columns that
    are not in a model get their default, or NULL if they refer to a table that is emptied.

    Raises:
        SanitizeError: the schema is behind, a rule is missing or invalid, or the database has data
            that cannot be sanitized.
    """
    if errors := find_rule_errors(Base):
        raise SanitizeError(f"The rules in `__sanitize__` are incomplete: {'; '.join(errors)}.")
    existing = await _columns(connection)
    missing = [
        f"{table.name}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if column.name not in existing.get(table.name, ())
    ]
    if missing:
        raise SanitizeError(_stale_message(missing[0]))
    if unreachable := await _unreachable_tables(connection):
        raise SanitizeError(
            f"Cannot sanitize {', '.join(unreachable)}. Drop them in this preview, or keep their"
            " data in tables of the application's schema."
        )
    known = sanitize_rules(Base)
    kept = {name for name, rule in known.items() if isinstance(rule, dict)} | {"alembic_version"}
    emptied = existing.keys() - kept
    references = await _references(connection)
    referred = {each.target for each in references if each.table not in emptied}
    while more := {each.target for each in references if each.table in referred} - referred:
        referred |= more
    plan = Plan(
        truncated=sorted(emptied - referred),
        deleted=sorted(emptied & referred),
        elsewhere=await _tables_elsewhere(connection),
    )
    for table in Base.metadata.sorted_tables:
        rule = known[table.name]
        if not isinstance(rule, dict):
            continue
        changes = {name: each.expression for name, each in rule.items() if each.expression}
        changes |= dict.fromkeys(existing[table.name] - rule.keys(), "DEFAULT")
        for each in references:
            if each.table == table.name and each.target in emptied:
                changes |= dict.fromkeys(each.nullable - rule.keys(), "NULL")
                if all(changes.get(column) != "NULL" for column in each.nullable):
                    raise SanitizeError(
                        f"Cannot empty {each.target}: {table.name} has {each.definition}, and none"
                        " of its columns is nullable. Deploy a release with models of both."
                    )
        if not changes:
            continue
        plan.updates.append(
            Update(table.name, _integer_key(table), changes, _unique_of(table, changes))
        )
    return plan


async def _columns(connection: AsyncConnection) -> dict[str, set[str]]:
    """Return the columns that can be updated, by table; without tables of extensions."""
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
    """Its nullable columns."""


async def _references(connection: AsyncConnection) -> list[Reference]:
    """Return the foreign keys. Those of a partition count as those of its root table."""
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


async def _tables_elsewhere(connection: AsyncConnection) -> list[str]:
    """Return the tables in `EMPTIED_SCHEMAS`, as SQL."""
    rows = await connection.execute(
        text(
            "SELECT nspname, relname FROM pg_class"
            " JOIN pg_namespace ON pg_namespace.oid = relnamespace"
            " WHERE relkind IN ('r', 'p') AND NOT relispartition AND nspname = ANY (:schemas)"
            " AND relname <> 'alembic_version' ORDER BY 1, 2"
        ),
        {"schemas": sorted(EMPTIED_SCHEMAS)},
    )
    return [f"{_quote(schema)}.{_quote(table)}" for schema, table in rows]


async def _unreachable_tables(connection: AsyncConnection) -> list[str]:
    """Return the names of data that `_columns` does not cover, except that of extensions."""
    rows = await connection.scalars(
        text(
            "SELECT CASE relkind WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'"
            " ELSE 'table' END || ' ' || nspname || '.' || relname AS name"
            " FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
            " WHERE (relkind IN ('m', 'f') OR relkind IN ('r', 'p') AND NOT relispartition"
            " AND nspname <> current_schema() AND nspname <> ALL (:schemas))"
            # The prefix is reserved for PostgreSQL: catalogs, TOAST and temporary tables.
            " AND NOT starts_with(nspname, 'pg_') AND nspname <> 'information_schema'"
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass"
            " AND objid = pg_class.oid AND deptype = 'e')"
            " UNION ALL SELECT 'large objects (' || count(*) || ')' FROM pg_largeobject_metadata"
            " HAVING count(*) > 0 ORDER BY name"
        ),
        {"schemas": sorted(EMPTIED_SCHEMAS)},
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
async def _connect_with_retries(
    engine: AsyncEngine, report: Report
) -> AsyncIterator[AsyncConnection]:
    deadline = time.monotonic() + CONNECT_TIMEOUT_SECONDS
    waiting = False
    while True:
        try:
            connection = await engine.connect()
            break
        except (OSError, PostgresError, DBAPIError) as error:
            if time.monotonic() > deadline:
                raise SanitizeError(
                    f"Cannot connect to the database ({type(error).__name__})."
                ) from None
            if not waiting:
                waiting = True
                report("Cannot connect to the database yet. Retrying.")
            await asyncio.sleep(1)
    try:
        yield connection
    finally:
        await connection.close()  # ends the database session, and with it the lock


async def _acquire_lock(connection: AsyncConnection, report: Report) -> None:
    """Acquire the advisory lock of `quart sanitize`."""
    try:
        await advisory_locks.acquire(
            connection,
            advisory_locks.SANITIZE,
            seconds=RUN_LOCK_TIMEOUT_SECONDS,
            on_wait=lambda: report("Waiting for another run to finish."),
        )
    except TimeoutError:
        raise SanitizeError("Timed out waiting for another run to finish.") from None


async def _is_finished(connection: AsyncConnection, environment: str, report: Report) -> bool:
    finished = await connection.scalar(
        text("SELECT finished_at FROM sanitizations WHERE environment = :environment"),
        {"environment": environment},
    )
    await connection.rollback()
    if finished is not None:
        report(f"{environment} was sanitized at {finished:%Y-%m-%d %H:%M} UTC. Nothing to do.")
    return finished is not None


def _error_message(error: DBAPIError) -> str:
    """Return a message without PostgreSQL's own text, which may quote a row."""
    original: Any = getattr(error.orig, "__cause__", None) or error.orig
    state = getattr(original, "sqlstate", None)
    if state in UNDEFINED_OBJECT:
        return _stale_message("a table or column of this release")
    if error.connection_invalidated:
        return "The connection to the database was lost. Run the command again to resume."
    place = [
        getattr(original, name, None)
        for name in ("schema_name", "table_name", "column_name", "constraint_name")
    ]
    where = ".".join(filter(None, place[:3])) + (f" ({place[3]})" if place[3] else "")
    return (
        f"A statement failed: {type(original).__name__}{where and f' at {where}'}."
        " Run the command again to resume."
    )


def _stale_message(what: str) -> str:
    return f"The schema lacks {what}. Run `alembic upgrade head` first."


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(names) or "no tables"
