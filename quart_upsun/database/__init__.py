"""PostgreSQL: sessions, the schema gate, the base of models.

Nothing here imports Quart at import time: a migration needs this package, and the deploy hook has
no time for more.
"""

from contextlib import AbstractAsyncContextManager

from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.current import current
from quart_upsun.database.base import LARGEST_ID, Base, load_models
from quart_upsun.database.connection import (
    STATEMENT_TIMEOUT,
    Connection,
    connect,
    unpooled_engine,
)
from quart_upsun.database.errors import (
    LOCK_NOT_AVAILABLE,
    READ_ONLY,
    UNDEFINED,
    DatabaseUnavailableError,
    LockTimeoutError,
    NoConnectionError,
    NotSanitizedError,
    ReadOnlyDatabaseError,
    SchemaBehindError,
)
from quart_upsun.database.gate import SchemaGate
from quart_upsun.database.schema import create_schema
from quart_upsun.database.session import Database, patience

__all__ = [
    "LARGEST_ID",
    "LOCK_NOT_AVAILABLE",
    "READ_ONLY",
    "STATEMENT_TIMEOUT",
    "UNDEFINED",
    "Base",
    "Connection",
    "Database",
    "DatabaseUnavailableError",
    "LockTimeoutError",
    "NoConnectionError",
    "NotSanitizedError",
    "ReadOnlyDatabaseError",
    "SchemaBehindError",
    "SchemaGate",
    "connect",
    "create_schema",
    "direct",
    "load_models",
    "patience",
    "read",
    "unpooled_engine",
    "write",
]


def read() -> AbstractAsyncContextManager[AsyncSession]:
    """Give the current application's session for queries; see `Database.read`."""
    return current().database.read()


def write() -> AbstractAsyncContextManager[AsyncSession]:
    """Give the current application's session in a transaction; see `Database.write`."""
    return current().database.write()


def direct() -> AbstractAsyncContextManager[Connection]:
    """Give the current application's connection for statements; see `Database.direct`."""
    return current().database.direct()
