"""Private APIs of SQLAlchemy 2.1 and its asyncpg dialect."""

from typing import Any, cast

from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.engine.interfaces import Compiled
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import await_only, greenlet_spawn

__all__ = [
    "ADAPTER_ERROR",
    "await_only",
    "cache_no_statements",
    "execute_again_if_stale",
    "greenlet_spawn",
    "positional_parameters",
]

# The adapter raises it while it connects, before SQLAlchemy wraps errors.
ADAPTER_ERROR = AsyncAdapt_asyncpg_dbapi.Error


def cache_no_statements(adapter: Any) -> None:
    """Prepare each statement anew, because the server does not tell when its types change.

    `prepared_statement_cache_size` would have to be known before the connection is open.

    Args:
        adapter: the dialect's adapter of an asyncpg connection.
    """
    adapter._prepared_statement_cache = None


def execute_again_if_stale(cursor: Any, statement: str, parameters: Any, context: Any) -> None:
    """Execute a statement, and retry it once if a migration has made its prepared plan stale.

    SQLAlchemy invalidates its cached plans in this case, but raises for the first statement of each
    connection. In a transaction it has to. In AUTOCOMMIT, a retry is safe.

    Args:
        cursor: the cursor, from the event `do_execute` like the other arguments.
        statement: the SQL.
        parameters: the statement's parameters.
        context: the execution context.
    """
    try:
        cursor.execute(statement, parameters)
    except context.dialect.loaded_dbapi.InvalidCachedStatementError as error:
        driver_connection = context.root_connection.connection.dbapi_connection
        if not context.dialect.detect_autocommit_setting(driver_connection):
            raise
        context.handle_dbapi_exception(error)  # invalidates all cached plans of the engine
        context.pre_exec()
        cursor.execute(statement, parameters)


def positional_parameters(compiled: Compiled) -> tuple[list[str], dict[str, Any]]:
    """Return a statement's parameter names in order, and the values of its constants.

    `Statement` passes the compiled SQL to asyncpg, which takes positional parameters.
    """
    compiler = cast(SQLCompiler, compiled)
    constants = {
        name: compiler.params[name]
        for parameter, name in compiler.bind_names.items()
        if not parameter.required
    }
    return compiler.positiontup or [], constants
