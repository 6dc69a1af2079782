"""Find out which tables and columns of a Flask application hold its users and their roles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from quart_upsun.database.ownership import HAS_OWNER_TABLE

SCHEMA = "flask"
"""The schema that the tables of the Flask application are moved to."""

USER_TABLES = ("users", "user")
ROLE_TABLES = ("roles", "role")
ROLE_NAMES = ("name", "role", "role_name")
INTEGERS = ("smallint", "integer", "bigint")
TEXTS = ("character varying", "text", "character", "citext")
FLAGS = ("boolean", *INTEGERS)
TIMES = ("timestamp without time zone", "timestamp with time zone", "date")

# What is read -> the types that it may have, and the usual names of its column.
READ: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "username": (TEXTS, ("username", "user_name", "login", "nickname", "name")),
    "email": (TEXTS, ("email", "email_address", "mail")),
    "password": (
        (*TEXTS, "bytea"),
        ("password", "password_hash", "_password", "hashed_password", "pw_hash", "passwd"),
    ),
    "created_at": (
        TIMES,
        ("created_at", "created", "created_on", "registered_at", "registered_on", "date_joined"),
    ),
    "active": (FLAGS, ("active", "is_active", "enabled")),
    "is_admin": (FLAGS, ("is_admin", "admin", "is_superuser")),
    "confirmed": ((*FLAGS, *TIMES), ("confirmed_at", "confirmed", "email_confirmed")),
    "role": (TEXTS, ("role",)),
}


class AdoptError(Exception):
    """The database cannot be adopted. The message says why, and what to do."""


class AlreadyAdoptedError(AdoptError):
    """The tables of this application exist."""


@dataclass(frozen=True)
class Column:
    """A column of the users table."""

    name: str
    type: str
    """Without the length."""
    length: int | None
    """The maximum length of a text; None without a limit."""
    is_nullable: bool
    is_required: bool
    """Whether an INSERT must set it: NOT NULL without a default."""
    is_unique: bool


@dataclass(frozen=True)
class Shape:
    """The tables of a Flask application."""

    table: str
    """The name of the users table."""
    columns: Sequence[Column]
    """All columns of the users table."""
    read: Mapping[str, Column]
    """The columns of the users table that are read, by the keys of `READ`."""
    role_queries: Sequence[str]
    """SQL queries for ids of users and names of their roles."""
    relations: Sequence[tuple[str, str]]
    """Kind and name of all tables, views, sequences and types that are moved."""
    routines: Sequence[str]
    """The functions that are moved, as SQL."""
    extensions: Sequence[str]
    """The extensions in the schema of the tables. They stay."""
    revision: str | None
    """The revision of Flask-Migrate; None if the application does not use it."""

    @property
    def tables(self) -> list[str]:
        return [name for kind, name in self.relations if kind == "TABLE"]


@dataclass(frozen=True)
class Choices:
    """What the caller says about the tables."""

    table: str | None = None
    """The users table."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns by the keys of `READ`; an empty name means that there is none."""


def quote(name: str) -> str:
    """Quote an identifier for SQL."""
    return '"' + name.replace('"', '""') + '"'


def read_shape(connection: Connection, choices: Choices) -> Shape:
    """Inspect the database.

    Args:
        connection: a connection whose current schema has the tables.
        choices: what the caller says about the tables.

    Raises:
        AlreadyAdoptedError: the tables of this application exist.
        AdoptError: there is no users table, or not one that can be adopted.
    """
    if connection.scalar(text(HAS_OWNER_TABLE)):
        raise AlreadyAdoptedError("The database has this application's tables already.")
    relations = _relations(connection)
    tables = [name for kind, name in relations if kind == "TABLE"]
    table = _users_table(tables, choices.table)
    columns = _columns(connection, table)
    _check_key(connection, table)
    if _exists_schema(connection):
        raise AdoptError(
            f"The schema {SCHEMA} exists, but the tables move to a new one of this name."
            f" Rename it: ALTER SCHEMA {SCHEMA} RENAME TO …"
        )
    if not connection.scalar(text("SELECT has_database_privilege(current_database(), 'CREATE')")):
        raise AdoptError(
            "The database user may not create schemas. As the owner of the database, run: GRANT"
            " CREATE ON DATABASE … TO …"
        )
    return Shape(
        table=table,
        columns=columns,
        read=_columns_to_read(table, columns, choices.columns),
        role_queries=_role_queries(connection, table, tables, columns),
        relations=relations,
        routines=_routines(connection),
        extensions=connection.scalars(
            text(
                "SELECT extname FROM pg_extension"
                " WHERE extnamespace = current_schema()::regnamespace ORDER BY extname"
            )
        ).all(),
        revision=(
            connection.scalar(text("SELECT min(version_num) FROM alembic_version"))
            if "alembic_version" in tables
            else None
        ),
    )


def _users_table(tables: Sequence[str], chosen: str | None) -> str:
    if chosen is not None:
        if chosen not in tables:
            raise AdoptError(f"The database has no table {chosen}. {_describe(tables)}")
        return chosen
    found = [name for name in USER_TABLES if name in tables]
    if not found:
        raise AdoptError(
            "The database has no table “users” or “user”. Name the table of the users with"
            f" --table. {_describe(tables)}"
        )
    if len(found) > 1:
        raise AdoptError(
            "The database has a table “users” and a table “user”. Choose one with --table."
        )
    return found[0]


def _describe(tables: Sequence[str]) -> str:
    return f"It has {', '.join(tables)}." if tables else "It has no tables."


def _exists_schema(connection: Connection) -> bool:
    return bool(
        connection.scalar(text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": SCHEMA})
    )


# Not those of extensions.
IS_OWN = (
    "NOT EXISTS (SELECT FROM pg_depend WHERE classid = '{0}'::regclass AND objid = {0}.oid"
    " AND deptype = 'e')"
)


def _relations(connection: Connection) -> list[tuple[str, str]]:
    """Return kind and name of what is moved, in the order of their names.

    The sequence of a column, and the type of a table's rows, move with the table.
    """
    rows = connection.execute(
        text(
            "SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'"
            " WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'c' THEN 'TYPE'"
            " ELSE 'TABLE' END, relname FROM pg_class"
            " WHERE relnamespace = current_schema()::regnamespace"
            " AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')"
            f" AND {IS_OWN.format('pg_class')}"
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass"
            " AND objid = pg_class.oid AND refclassid = 'pg_class'::regclass"
            " AND relkind = 'S' AND deptype IN ('a', 'i'))"
            " UNION ALL SELECT CASE typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, typname"
            " FROM pg_type WHERE typnamespace = current_schema()::regnamespace"
            f" AND typtype IN ('e', 'd') AND {IS_OWN.format('pg_type')}"
            " ORDER BY 2"
        )
    )
    return [(kind, name) for kind, name in rows]


def _routines(connection: Connection) -> Sequence[str]:
    return connection.scalars(
        text(
            "SELECT format('%I(%s)', proname, pg_get_function_identity_arguments(pg_proc.oid))"
            " FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"
            f" AND {IS_OWN.format('pg_proc')} ORDER BY 1"
        )
    ).all()


def _columns(connection: Connection, table: str) -> list[Column]:
    rows = connection.execute(
        text(
            "SELECT attname, split_part(format_type(atttypid, NULL), '(', 1),"
            " CASE WHEN atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND atttypmod > 4"
            " THEN atttypmod - 4 END,"
            " NOT attnotnull, attnotnull AND NOT atthasdef AND attidentity = '',"
            " EXISTS (SELECT FROM pg_index WHERE indrelid = attrelid AND indisunique"
            " AND indnkeyatts = 1 AND indkey[0] = attnum)"
            " FROM pg_attribute WHERE attrelid = CAST(:table AS regclass)"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        ),
        {"table": quote(table)},
    )
    return [Column(*row) for row in rows]


def _check_key(connection: Connection, table: str) -> None:
    """Check that the primary key is an integer `id`.

    Raises:
        AdoptError: it is not.
    """
    keys = connection.execute(
        text(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_index"
            " JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)"
            " WHERE indisprimary AND indrelid = CAST(:table AS regclass)"
        ),
        {"table": quote(table)},
    ).all()
    if len(keys) == 1 and keys[0][0] == "id" and keys[0][1] in INTEGERS:
        return
    found = ", ".join(f"{name} {kind}" for name, kind in keys) or "none"
    raise AdoptError(
        f"The primary key of {table} must be an integer column “id”, because the ids of the users"
        f" are kept. It is: {found}."
    )


def _columns_to_read(
    table: str, columns: Sequence[Column], chosen: Mapping[str, str]
) -> dict[str, Column]:
    """Return the columns that are read.

    Raises:
        AdoptError: a chosen column does not exist or has the wrong type, or there is neither a
            column of usernames nor one of email addresses.
    """
    existing = {column.name: column for column in columns}
    found = {}
    for key, (types, names) in READ.items():
        if key not in chosen:
            fitting = (existing[name] for name in names if name in existing)
            column = next((each for each in fitting if each.type in types), None)
        elif not chosen[key]:
            continue
        else:
            column = existing.get(chosen[key])
            if column is None:
                raise AdoptError(f"{table} has no column {chosen[key]}.")
            if column.type not in types:
                raise AdoptError(
                    f"{table}.{column.name} has the type {column.type}, but --column"
                    f" {key}=… requires one of {', '.join(types)}."
                )
        if column is not None:
            found[key] = column
    if "username" not in found and "email" not in found:
        raise AdoptError(
            f"{table} has no column of usernames and none of email addresses. Name them with"
            " --column username=… and --column email=…"
        )
    return found


def _role_queries(
    connection: Connection, users: str, tables: Sequence[str], columns: Sequence[Column]
) -> list[str]:
    """Return the queries for the roles of users.

    Known are a table of roles with the id of a user (cookiecutter-flask), a table between roles and
    users (Flask-Security), and a column of the users table with the id of a role.
    """
    roles = next((name for name in ROLE_TABLES if name in tables), None)
    if roles is None:
        return []
    names = {column.name for column in _columns(connection, roles)}
    name = next((each for each in ROLE_NAMES if each in names), None)
    if name is None:
        return []
    keys = _foreign_keys(connection)
    queries = []
    for source, column, target in keys:
        if source == roles and target == users:
            queries.append(
                f"SELECT {quote(column)}, {quote(name)} FROM {quote(roles)}"
                f" WHERE {quote(column)} IS NOT NULL"
            )
        elif source == users and target == roles:
            queries.append(
                f"SELECT users.id, roles.{quote(name)} FROM {quote(users)} AS users"
                f" JOIN {quote(roles)} AS roles ON roles.id = users.{quote(column)}"
            )
        elif target == users:
            queries += [
                f"SELECT link.{quote(column)}, roles.{quote(name)} FROM {quote(source)} AS link"
                f" JOIN {quote(roles)} AS roles ON roles.id = link.{quote(other)}"
                for table, other, referred in keys
                if table == source and referred == roles
            ]
    return queries


def _foreign_keys(connection: Connection) -> list[tuple[str, str, str]]:
    """Return table, column and referred table of all foreign keys of one column."""
    rows: Sequence[Any] = connection.execute(
        text(
            "SELECT source.relname, attname, target.relname FROM pg_constraint"
            " JOIN pg_class AS source ON source.oid = conrelid"
            " JOIN pg_class AS target ON target.oid = confrelid"
            " JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]"
            " WHERE contype = 'f' AND array_length(conkey, 1) = 1"
            " AND source.relnamespace = current_schema()::regnamespace ORDER BY conname"
        )
    ).all()
    return [(row[0], row[1], row[2]) for row in rows]
