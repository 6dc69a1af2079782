"""Connections to PostgreSQL and the engine with the connection pool."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial, wraps
from typing import Any, TypeAlias

import asyncpg
from asyncpg import InterfaceError, InternalClientError, PostgresError
from sqlalchemy import URL, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, PoolProxiedConnection

from quart_upsun.compat.sqlalchemy import ADAPTER_ERROR, execute_again_if_stale
from quart_upsun.database.errors import (
    READ_ONLY,
    DatabaseUnavailableError,
    NoConnectionError,
    sqlstate,
)
from quart_upsun.database.url import connect_arguments

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Longer than POOL_TIMEOUT_SECONDS: connecting takes many turns of the event loop, which are slow
# when the process is short of CPU, for instance while another release starts beside it.
CONNECT_TIMEOUT_SECONDS = 5.0
STATEMENT_TIMEOUT_SECONDS = 8
LOCK_TIMEOUT_SECONDS = 4


def _record_error(method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @wraps(method)
    async def wrapper(self: "PooledConnection", *args: Any, **options: Any) -> Any:
        try:
            return await method(self, *args, **options)
        except BaseException as error:
            self.raised = error
            raise

    return wrapper


class PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """An asyncpg connection that records the errors it raises.

    Attributes:
        raised: the error of the last failed statement. `Database.direct` uses it to tell database
            errors from errors of the caller.
    """

    raised: BaseException | None = None

    def take_raised(self) -> BaseException | None:
        """Return the recorded error and clear it."""
        raised, self.raised = self.raised, None
        return raised

    execute = _record_error(asyncpg.Connection.execute)
    executemany = _record_error(asyncpg.Connection.executemany)
    fetch = _record_error(asyncpg.Connection.fetch)
    fetchrow = _record_error(asyncpg.Connection.fetchrow)
    fetchval = _record_error(asyncpg.Connection.fetchval)


async def connect(
    url: URL,
    *,
    name: str,
    timeout: float | None = None,  # noqa: ASYNC109 asyncpg's own
    command_timeout: float | None = None,
    settings: Mapping[str, str] | None = None,
) -> PooledConnection:
    """Open an asyncpg connection. All engines and listeners connect with this function.

    Args:
        url: a URL from `parse_database_url()`. Its `application_name` and `connect_timeout`
            override `name` and `timeout`; `settings` override its `options`.
        name: the `application_name` in `pg_stat_activity`.
        timeout: seconds to connect; `CONNECT_TIMEOUT_SECONDS` by default.
        command_timeout: seconds per statement; no limit by default.
        settings: server settings for this connection.

    Raises:
        NoConnectionError: the connection failed, for any reason.
    """
    arguments = connect_arguments(url)
    arguments = {"timeout": CONNECT_TIMEOUT_SECONDS if timeout is None else timeout, **arguments}
    server_settings = {
        "timezone": "UTC",
        **(settings or {}),
        "application_name": name,
        **arguments.pop("server_settings"),
    }
    connecting = asyncio.ensure_future(
        asyncpg.connect(
            **arguments,
            command_timeout=command_timeout,
            server_settings=server_settings,
            connection_class=PooledConnection,
        )
    )
    try:
        # asyncpg 0.32 can leave an exception that is never retrieved when it is cancelled.
        connection: PooledConnection = await asyncio.shield(connecting)
    except asyncio.CancelledError:
        connecting.add_done_callback(_discard)
        raise
    except (OSError, PostgresError, InterfaceError, InternalClientError) as error:
        raise NoConnectionError(_reason(error, arguments["timeout"])) from error
    return connection


def unpooled_engine(
    url: URL, *, name: str, settings: Mapping[str, str] | None = None
) -> AsyncEngine:
    """Return an engine without a pool, for commands.

    Args:
        url: as for `connect()`.
        name: the `application_name` in `pg_stat_activity`.
        settings: server settings for its connections.
    """
    return create_async_engine(
        url,
        async_creator=partial(connect, url, name=name, settings=settings),
        poolclass=NullPool,
        hide_parameters=True,
    )


def _discard(connecting: asyncio.Future[PooledConnection]) -> None:
    """Close a connection whose caller was cancelled."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()


def connect_timeout(url: URL) -> float:
    """Return the connect timeout for a database, in seconds."""
    return float(connect_arguments(url).get("timeout", CONNECT_TIMEOUT_SECONDS))


def _reason(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} seconds"
    if isinstance(error, OSError) and error.errno:
        # asyncio's message lists all addresses of a name. DNS errors have negative numbers.
        return os.strerror(error.errno) if error.errno > 0 else error.strerror or str(error)
    return str(error) or type(error).__name__


class _Pool(AsyncAdaptedQueuePool):
    """A pool that tells a failed connection attempt from a failed statement."""

    __module__ = AsyncAdaptedQueuePool.__module__  # SQLAlchemy names the logger after it

    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except NoConnectionError:
            raise
        except (OSError, PostgresError, InterfaceError, DBAPIError, ADAPTER_ERROR) as error:
            raise NoConnectionError(str(error)) from error


def pooled_engine(
    url: URL, pool_size: int, outage: Callable[..., DatabaseUnavailableError | None]
) -> AsyncEngine:
    engine = create_async_engine(
        url,
        async_creator=partial(
            connect,
            url,
            name="quart-upsun",
            # If the server does not respond at all. Its own statement_timeout comes first.
            command_timeout=STATEMENT_TIMEOUT_SECONDS + 2,
            settings={
                "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
                "idle_in_transaction_session_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "jit": "off",  # costs more than it saves on short queries
            },
        ),
        isolation_level="AUTOCOMMIT",
        poolclass=_Pool,
        pool_size=pool_size,
        max_overflow=0,
        pool_recycle=1800,
        hide_parameters=True,  # keeps user input out of the log
    )

    @event.listens_for(engine.sync_engine, "handle_error")
    def translate_error(context: ExceptionContext) -> BaseException | None:
        """Replace an error that means an outage with a `DatabaseUnavailableError`."""
        error = context.original_exception
        replacement = outage(error, is_lost=context.is_disconnect and isinstance(error, Exception))
        if is_unusable(error):
            context.is_disconnect = True
        return replacement

    @event.listens_for(engine.sync_engine, "checkout")
    def discard_closed(connection: Any, record: Any, proxy: Any) -> None:
        """Replace a connection that was closed while idle.

        asyncpg notices a closed socket by itself, so this needs no round trip per checkout, unlike
        `pool_pre_ping`.
        """
        if connection.driver_connection.is_closed():
            raise InvalidatePoolError

    @event.listens_for(engine.sync_engine, "do_execute")
    def retry_stale_plan(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        """Prepare a statement again if a migration has made its cached plan invalid.

        During a rolling deploy the previous release runs on the next release's schema.
        """
        execute_again_if_stale(cursor, statement, parameters, context)
        return True

    return engine


def is_unusable(error: BaseException) -> bool:
    """Tell whether an error means that the connection must not be reused.

    A server that timed out would keep the next request waiting too, and a session stays read-only
    after the database has become writable.
    """
    return isinstance(error, OSError) or sqlstate(error) == READ_ONLY
