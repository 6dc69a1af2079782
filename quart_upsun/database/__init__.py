"""PostgreSQL: sessions, the schema gate and the base class of models.

Nothing here imports Quart at import time. Migrations use this package, and the deploy hook must be
fast.
"""

from contextlib import AbstractAsyncContextManager

from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.current import current_toolkit
from quart_upsun.database.base import MAX_ID, Base, load_models
from quart_upsun.database.connection import (
    STATEMENT_TIMEOUT_SECONDS,
    Connection,
    connect,
    unpooled_engine,
)
from quart_upsun.database.errors import (
    LOCK_NOT_AVAILABLE,
    READ_ONLY,
    UNDEFINED_OBJECT,
    DatabaseUnavailableError,
    LockTimeoutError,
    NoConnectionError,
    NotSanitizedError,
    ReadOnlyDatabaseError,
    SchemaBehindError,
    TransactionPoolingError,
)
from quart_upsun.database.gate import SchemaGate
from quart_upsun.database.schema import create_schema
from quart_upsun.database.session import Database, pool_timeout

__all__ = [
    "LOCK_NOT_AVAILABLE",
    "MAX_ID",
    "READ_ONLY",
    "STATEMENT_TIMEOUT_SECONDS",
    "UNDEFINED_OBJECT",
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
    "TransactionPoolingError",
    "connect",
    "create_schema",
    "direct",
    "load_models",
    "pool_timeout",
    "read",
    "unpooled_engine",
    "write",
]


def read(*, exact: bool = False) -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session for queries in the current application; see `Database.read`."""
    return current_toolkit().database.read(exact=exact)


def write() -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session with a transaction in the current application; see `Database.write`."""
    return current_toolkit().database.write()


def direct(*, exact: bool = False) -> AbstractAsyncContextManager[Connection]:
    """Borrow a pooled asyncpg connection of the current application; see `Database.direct`."""
    return current_toolkit().database.direct(exact=exact)
