"""What can go wrong with the database, and the error codes of PostgreSQL that tell it."""

from sqlalchemy.exc import DBAPIError

# https://www.postgresql.org/docs/18/errcodes-appendix.html
UNDEFINED_TABLE = "42P01"
UNDEFINED_OBJECT = {UNDEFINED_TABLE, "42703", "3F000"}  # table, column, schema
# Connections, resources, operator intervention (timeouts and shutdown among it), serialization
# failures and deadlocks, and transactions that the server has ended because they took too long.
TRANSIENT_ERRORS = ("08", "53", "57", "58", "40", "25P03", "25P04")
LOCK_NOT_AVAILABLE = "55P03"
# After a failover to a standby, or while `default_transaction_read_only` is on.
READ_ONLY = "25006"


class DatabaseUnavailableError(Exception):
    """The database does not answer in time; a later attempt may succeed."""


class NoConnectionError(ConnectionError):
    """PostgreSQL could not be connected to. The text says why."""


class UndefinedObjectError(Exception):
    """A statement named a table or column that does not exist."""

    def __init__(self, original: Exception) -> None:
        super().__init__(str(original))
        self.original = original


class ReadOnlyDatabaseError(DatabaseUnavailableError):
    """PostgreSQL answers, but does not accept changes at the moment."""

    def __init__(self) -> None:
        super().__init__("the database is read-only")


class LockTimeoutError(DatabaseUnavailableError):
    """Another transaction has held a lock for longer than `LOCK_TIMEOUT_SECONDS`."""


class SchemaBehindError(DatabaseUnavailableError):
    """The database's schema is older than this code needs.

    Attributes:
        found: the revision the database is at; None when it was never migrated.
        needed: the revision this code was written for.
    """

    def __init__(self, found: str | None, needed: str) -> None:
        super().__init__(f"the schema is at revision {found or 'none'}, this code needs {needed}")
        self.found = found
        self.needed = needed


class NotSanitizedError(DatabaseUnavailableError):
    """This is a preview, and its data still tell about people."""

    def __init__(self, environment: str) -> None:
        super().__init__(f"the data of {environment} are not sanitized (`quart sanitize` does it)")
        self.environment = environment


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error of the driver or of SQLAlchemy; None if it has none."""
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state if isinstance(state, str) else None
