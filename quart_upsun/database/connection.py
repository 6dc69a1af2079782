"""How connections to PostgreSQL are made, and the engine that pools them."""

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

# Longer than a request waits for a pooled connection: a process that is short of processor, such
# as while another release starts beside it, needs many turns of its loop for a new connection.
CONNECT_TIMEOUT_SECONDS = 5.0  # seconds
STATEMENT_TIMEOUT_SECONDS = 8  # seconds
LOCK_TIMEOUT_SECONDS = 4  # seconds


def _record_error(method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @wraps(method)
    async def remember(self: "PooledConnection", *args: Any, **options: Any) -> Any:
        try:
            return await method(self, *args, **options)
        except BaseException as error:
            self.raised = error
            raise

    return remember


class PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection, which knows the error that it has raised itself.

    Attributes:
        raised: by the last statement that failed. `Database.direct` tells it from those of others.
    """

    raised: BaseException | None = None

    def take_raised(self) -> BaseException | None:
        """Return the error, and forget it."""
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
    """Open an asyncpg connection: the one way to the database, for all engines and listeners.

    Args:
        url: from `parse_database_url()`. Its `application_name` and `connect_timeout` win over
            `name` and `timeout`; its `options` do not win over `settings`.
        name: what the connection is called in `pg_stat_activity`.
        timeout: seconds until it is connected; `CONNECT_TIMEOUT_SECONDS` by default.
        command_timeout: seconds for one statement; without a limit by default.
        settings: of the server, for this connection.

    Raises:
        NoConnectionError: for whatever reason.
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
        # Cancelled at a wrong moment, asyncpg 0.32 leaves an exception that nobody retrieves.
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
    """Return an engine for a command, which closes each connection after its use.

    Args:
        url: as in `connect()`.
        name: what the connection is called in `pg_stat_activity`.
        settings: of the server, for this connection.
    """
    return create_async_engine(
        url,
        async_creator=partial(connect, url, name=name, settings=settings),
        poolclass=NullPool,
        hide_parameters=True,
    )


def _discard(connecting: asyncio.Future[PooledConnection]) -> None:
    """Close a connection that nobody waits for any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()


def connect_timeout(url: URL) -> float:
    """Return the seconds that a connection to the database may take to be made."""
    return float(connect_arguments(url).get("timeout", CONNECT_TIMEOUT_SECONDS))


def _reason(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} seconds"
    if isinstance(error, OSError) and error.errno:
        # asyncio's own text lists all addresses of a name; the numbers of a lookup are negative.
        return os.strerror(error.errno) if error.errno > 0 else error.strerror or str(error)
    return str(error) or type(error).__name__


class _Pool(AsyncAdaptedQueuePool):
    """Tells a connection that cannot be made from an error of a statement."""

    __module__ = AsyncAdaptedQueuePool.__module__  # which names the logger

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
            # For a server that stopped answering altogether; its own timeout comes first.
            command_timeout=STATEMENT_TIMEOUT_SECONDS + 2,
            settings={
                "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
                "idle_in_transaction_session_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
                "jit": "off",  # costs more than it saves on queries of a web page
            },
        ),
        isolation_level="AUTOCOMMIT",
        poolclass=_Pool,
        pool_size=pool_size,
        max_overflow=0,
        pool_recycle=1800,
        hide_parameters=True,  # what visitors typed does not belong into a log
    )

    @event.listens_for(engine.sync_engine, "handle_error")
    def judge(context: ExceptionContext) -> BaseException | None:
        """Replace an error that the database is the cause of, where it is raised."""
        error = context.original_exception
        found = outage(error, is_lost=context.is_disconnect and isinstance(error, Exception))
        if is_unusable(error):
            context.is_disconnect = True
        return found

    @event.listens_for(engine.sync_engine, "checkout")
    def discard_dead(connection: Any, record: Any, proxy: Any) -> None:
        """Replace what died while it was idle.

        asyncpg hears of a server's end at once, so this costs no round trip, as
        `pool_pre_ping` would at every checkout.
        """
        if connection.driver_connection.is_closed():
            raise InvalidatePoolError

    @event.listens_for(engine.sync_engine, "do_execute")
    def replace_stale_plan(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        """Survive the next release's migrations: a release that is being replaced lives on."""
        execute_again_if_stale(cursor, statement, parameters, context)
        return True

    return engine


def is_unusable(error: BaseException) -> bool:
    """Tell whether the connection must not be used again after an error.

    A server that did not answer in time would keep the next one waiting, too. And a session stays
    read-only when the database no longer is.
    """
    return isinstance(error, OSError) or sqlstate(error) == READ_ONLY
