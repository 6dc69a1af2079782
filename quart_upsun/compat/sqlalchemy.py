"""SQLAlchemy 2.1 and its dialect for asyncpg."""

from typing import Any, cast

from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.engine.interfaces import Compiled
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import greenlet_spawn

__all__ = ["ADAPTER_ERROR", "execute_again_if_stale", "greenlet_spawn", "positional_parameters"]

# Raised by the adapter itself where a connection is made, before SQLAlchemy wraps errors.
ADAPTER_ERROR = AsyncAdapt_asyncpg_dbapi.Error


def execute_again_if_stale(cursor: Any, statement: str, parameters: Any, context: Any) -> None:
    """Execute a statement, and prepare it again if a migration has made its plan stale.

    SQLAlchemy only marks the plans as stale, and lets the first request of each connection fail. In
    a transaction that is right. Outside of one nothing is lost by asking twice.

    Args:
        cursor: as the event `do_execute` gives it; so are the others.
        statement: the SQL.
        parameters: its parameters.
        context: the execution context.
    """
    try:
        cursor.execute(statement, parameters)
    except context.dialect.loaded_dbapi.InvalidCachedStatementError as error:
        driver_connection = context.root_connection.connection.dbapi_connection
        if not context.dialect.detect_autocommit_setting(driver_connection):
            raise
        context.handle_dbapi_exception(error)  # marks all cached plans of the engine as stale
        context.pre_exec()
        cursor.execute(statement, parameters)


def positional_parameters(compiled: Compiled) -> tuple[list[str], dict[str, Any]]:
    """Return the names of a statement's parameters in order, and the values of the constant ones.

    `Statement` sends the compiled SQL by asyncpg, which takes parameters by position.
    """
    compiler = cast(SQLCompiler, compiled)
    constants = {
        name: compiler.params[name]
        for parameter, name in compiler.bind_names.items()
        if not parameter.required
    }
    return compiler.positiontup or [], constants
