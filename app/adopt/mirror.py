"""Keep the users table of the Flask application up to date, which its other tables refer to.

The accounts belong to this application. A trigger on its users table repeats each change in
`flask.users`, so that the Flask application, if it goes on, knows new accounts and those that were
deactivated. The Flask application may change its other columns, but no accounts.

All of it is in the schema `flask`: dropping the schema removes the trigger, too.
"""

from collections.abc import Iterator

from sqlalchemy import Connection, text

from app.adopt.shape import FLAGS, INTEGERS, SCHEMA, TEXTS, TIMES, AdoptError, Column, Shape, quote
from app.user.models import Role

PLACEHOLDER = "'user-' || NEW.id || '@example.invalid'"
ADMINISTRATOR = f"(NEW.role = '{Role.ADMINISTRATOR}')"

# Values for required columns that this application knows nothing about, by the kind of type.
BLANK = {
    TEXTS: "''",
    INTEGERS: "0",
    ("boolean",): "false",
    TIMES: "now()",
    ("real", "double precision", "numeric"): "0",
    ("json", "jsonb"): "'{}'",
    ("uuid",): "gen_random_uuid()",
    ("bytea",): r"'\x'",
}


def create(connection: Connection, shape: Shape) -> None:
    """Create the triggers, after the tables are moved and the users are copied."""
    for statement in statements(shape):
        connection.exec_driver_sql(statement)


def statements(shape: Shape) -> Iterator[str]:
    """Yield the SQL.

    Raises:
        AdoptError: a column requires a value of a type for which none is known.
    """
    table = f"{SCHEMA}.{quote(shape.table)}"
    changes = _changing(shape)
    first = {"id": "NEW.id"} | _constant(shape) | {key: new for key, (_, new) in changes.items()}
    placeholders = first | {
        name: value for name, value in _unmistakable(shape).items() if name in first
    }
    updates = ", ".join(
        f"{quote(name)} = CASE WHEN {changed} THEN {new} ELSE {quote(name)} END"
        for name, (changed, new) in changes.items()
    )
    forgotten = ", ".join(
        f"{quote(name)} = {value}"
        for name, value in (_unmistakable(shape) | _forgotten(shape)).items()
    ).replace("NEW.", "OLD.")
    yield f"""
        CREATE FUNCTION {SCHEMA}.mirror_user() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'INSERT' THEN
                BEGIN
                    {_insert(table, first)};
                EXCEPTION WHEN unique_violation THEN
                    {_insert(table, placeholders)};
                END;
            ELSIF TG_OP = 'UPDATE' THEN
                BEGIN
                    UPDATE {table} SET {updates} WHERE id = NEW.id;
                EXCEPTION WHEN unique_violation THEN
                    NULL; -- an address that differs only by case: the old one stays
                END;
            ELSE
                BEGIN
                    DELETE FROM {table} WHERE id = OLD.id;
                EXCEPTION WHEN foreign_key_violation THEN
                    UPDATE {table} SET {forgotten} WHERE id = OLD.id;
                END;
            END IF;
            RETURN NULL;
        END $$
        """
    yield f"""
        CREATE TRIGGER mirror_user
        AFTER INSERT OR DELETE OR UPDATE OF username, email, password_hash, role, deactivated_at
        ON users FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.mirror_user()
        """
    yield f"""
        CREATE FUNCTION {SCHEMA}.refuse_user_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF pg_trigger_depth() < 2 THEN
                RAISE EXCEPTION 'accounts are managed by the new application, in public.users'
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
            IF TG_OP = 'DELETE' THEN
                RETURN OLD;
            END IF;
            RETURN NEW;
        END $$
        """
    columns = ", ".join(quote(name) for name in ("id", *changes))
    yield f"""
        CREATE TRIGGER refuse_user_change
        BEFORE INSERT OR DELETE OR UPDATE OF {columns}
        ON {table} FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.refuse_user_change()
        """


def fit(value: str, column: Column, otherwise: str) -> str:
    """Return an SQL expression for a value, or for another one if it is too long for the column."""
    if column.length is None:
        return value
    return f"CASE WHEN length({value}) <= {column.length} THEN {value} ELSE {otherwise} END"


def _insert(table: str, values: dict[str, str]) -> str:
    columns = ", ".join(map(quote, values))
    return f"INSERT INTO {table} ({columns}) VALUES ({', '.join(values.values())})"


def _changing(shape: Shape) -> dict[str, tuple[str, str]]:
    """Return, by column, when a value changes and the new value."""
    found: dict[str, tuple[str, str]] = {}
    read = shape.read
    if column := read.get("username"):
        name = fit("NEW.username", column, "'user-' || NEW.id")
        found[column.name] = "NEW.username IS DISTINCT FROM OLD.username", name
    if column := read.get("email"):
        address = fit(f"coalesce(NEW.email, {PLACEHOLDER})", column, PLACEHOLDER)
        found[column.name] = "NEW.email IS DISTINCT FROM OLD.email", address
    if column := read.get("password"):
        # The new hash is of no use there, and the old password must not stay valid.
        changed = "NEW.password_hash IS DISTINCT FROM OLD.password_hash"
        found[column.name] = changed, "'!'"
    if column := read.get("active"):
        changed = "NEW.deactivated_at IS DISTINCT FROM OLD.deactivated_at"
        found[column.name] = changed, _flag("(NEW.deactivated_at IS NULL)", column)
    if column := read.get("is_admin"):
        found[column.name] = "NEW.role IS DISTINCT FROM OLD.role", _flag(ADMINISTRATOR, column)
    return found


def _constant(shape: Shape) -> dict[str, str]:
    """Return the values of the other columns of a new row, by column."""
    found: dict[str, str] = {}
    if column := shape.read.get("created_at"):
        is_aware = column.type == "timestamp with time zone"
        found[column.name] = "NEW.created_at" if is_aware else "NEW.created_at AT TIME ZONE 'UTC'"
    mirrored = {"id", *found, *(shape.read[key].name for key in _MIRRORED if key in shape.read)}
    for column in shape.columns:
        if column.is_required and column.name not in mirrored:
            found[column.name] = _blank(shape.table, column)
    return found


_MIRRORED = ("username", "email", "password", "active", "is_admin")


def _blank(table: str, column: Column) -> str:
    if column.is_unique and column.type in TEXTS:
        value = "replace(gen_random_uuid()::text, '-', '')"
        return value if column.length is None else f"left({value}, {column.length})"
    for types, value in BLANK.items():
        if column.type in types and not column.is_unique:
            return value
    raise AdoptError(
        f"The column {table}.{column.name} has no default, so no new account could be added to the"
        f" table. Set one: ALTER TABLE {quote(table)} ALTER COLUMN {quote(column.name)} SET"
        " DEFAULT …"
    )


def _flag(condition: str, column: Column) -> str:
    if column.type == "boolean":
        return condition
    return f"{condition}::integer" if column.type in FLAGS else condition


def _unmistakable(shape: Shape) -> dict[str, str]:
    """Return a name and an address that nobody else has, by column."""
    values = {"username": "'deleted-' || NEW.id", "email": PLACEHOLDER}
    return {shape.read[key].name: value for key, value in values.items() if key in shape.read}


def _forgotten(shape: Shape) -> dict[str, str]:
    """Return what becomes of a deleted account's columns if other tables refer to it."""
    values = {
        "password": "'!'",
        "active": "(false)",
        "is_admin": "(false)",
    }
    found = {
        shape.read[key].name: _flag(value, shape.read[key]) if key != "password" else value
        for key, value in values.items()
        if key in shape.read
    }
    kept = {"id", "created_at", *(column.name for column in shape.read.values())}
    found |= {
        column.name: "NULL"
        for column in shape.columns
        if column.name not in kept and column.is_nullable and column.type in TEXTS
    }
    return found


def rename(connection: Connection, shape: Shape, usernames: dict[int, str]) -> None:
    """Rename users in the Flask application's table, before the triggers exist.

    Args:
        connection: the transaction.
        shape: the tables.
        usernames: the new names by id.
    """
    column = shape.read.get("username")
    if column is None or not usernames:
        return
    table, name = f"{SCHEMA}.{quote(shape.table)}", quote(column.name)
    ids, names = list(usernames), list(usernames.values())
    # In two steps, because two users may swap their names.
    connection.execute(
        text(f"UPDATE {table} SET {name} = '#' || id WHERE id = ANY (:ids)"),
        {"ids": ids},
    )
    new = fit("renamed.username", column, "'user-' || renamed.id")
    connection.execute(
        text(
            f"UPDATE {table} SET {name} = {new} FROM"
            " unnest(CAST(:ids AS bigint[]), CAST(:names AS text[])) AS renamed (id, username)"
            f" WHERE {table}.id = renamed.id"
        ),
        {"ids": ids, "names": names},
    )
