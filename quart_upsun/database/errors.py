"""Database errors, and the SQLSTATE codes that cause them."""

from sqlalchemy.exc import DBAPIError

# https://www.postgresql.org/docs/18/errcodes-appendix.html
UNDEFINED_TABLE = "42P01"
UNDEFINED_OBJECT = {UNDEFINED_TABLE, "42703", "3F000"}  # table, column, schema
# Classes: connection, insufficient resources, operator intervention (timeouts, shutdown), system
# error, rollback (serialization failure, deadlock); then the two transaction timeouts.
TRANSIENT_ERRORS = ("08", "53", "57", "58", "40", "25P03", "25P04")
LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"  # such as by statement_timeout
# After a failover to a standby, or while `default_transaction_read_only` is on.
READ_ONLY = "25006"
FEATURE_NOT_SUPPORTED = "0A000"  # such as reading an unlogged table of a standby


class DatabaseUnavailableError(Exception):
    """The database is temporarily unavailable. A retry may succeed."""


class NoConnectionError(ConnectionError):
    """The connection to PostgreSQL failed. The message says why."""


class TransactionPoolingError(NoConnectionError):
    """A connection needs a session of its own, and leads to a pooler in transaction mode.

    Args:
        address: host and port of the pooler.
    """

    remedy = "Set DATABASE_DIRECT_URL to the URL of PostgreSQL itself"

    def __init__(self, address: str) -> None:
        super().__init__(
            f"{address} is a connection pooler in transaction mode, through which notifications,"
            " locks and migrations do not work"
        )


class UndefinedObjectError(Exception):
    """A statement refers to a schema, table or column that does not exist."""

    def __init__(self, original: Exception) -> None:
        super().__init__(str(original))
        self.original = original


class ReadOnlyDatabaseError(DatabaseUnavailableError):
    """PostgreSQL is read-only at the moment."""

    def __init__(self) -> None:
        super().__init__("the database is read-only")


class LockTimeoutError(DatabaseUnavailableError):
    """Another transaction held a lock for longer than `LOCK_TIMEOUT_SECONDS`."""


class SchemaBehindError(DatabaseUnavailableError):
    """The schema of the database is older than this code requires.

    Attributes:
        found: the revision of the database; None if it was never migrated.
        needed: the revision that this code requires.
    """

    def __init__(self, found: str | None, needed: str) -> None:
        super().__init__(
            f"the schema is at revision {found or 'none'}, but this code requires {needed}"
        )
        self.found = found
        self.needed = needed


class NotSanitizedError(DatabaseUnavailableError):
    """The data of this preview is not anonymized yet."""

    def __init__(self, environment: str) -> None:
        super().__init__(f"the data of {environment} is not sanitized; run `quart sanitize`")
        self.environment = environment


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error from asyncpg or SQLAlchemy; None if it has none."""
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state if isinstance(state, str) else None
