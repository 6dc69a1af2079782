"""Connections to PostgreSQL and the engine with the connection pool."""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any, TypeAlias

import asyncpg
from asyncpg import InterfaceError, InternalClientError, PostgresError
from sqlalchemy import URL, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, PoolProxiedConnection

from quart_upsun.compat import asyncpg as compat
from quart_upsun.compat.sqlalchemy import (
    ADAPTER_ERROR,
    cache_no_statements,
    execute_again_if_stale,
)
from quart_upsun.database import pooler
from quart_upsun.database.errors import (
    READ_ONLY,
    DatabaseUnavailableError,
    NoConnectionError,
    TransactionPoolingError,
    sqlstate,
)
from quart_upsun.database.url import connect_arguments, host_and_port, require_url
from quart_upsun.database.usage import QueryObserver
from quart_upsun.logging import get_logger
from quart_upsun.time_limits import shutdown_limit

log = get_logger(__name__)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Longer than POOL_TIMEOUT_SECONDS: connecting takes many turns of the event loop, which are slow
# when the process is short of CPU, for instance while another release starts beside it.
CONNECT_TIMEOUT_SECONDS = 5.0
STATEMENT_TIMEOUT_SECONDS = 8
LOCK_TIMEOUT_SECONDS = 4
# Behind a pooler. The server does not tell when a migration has changed the types of a statement
# without a name.
TYPES_LIFETIME_SECONDS = 10.0
# PgBouncer's answer to a setting that it does not track for each client.
REJECTED_SETTING = re.compile(r"unsupported startup parameter")
# The server settings of pooled connections.
TIMEOUTS = {
    "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
}
SET_TIMEOUTS = "".join(f"SET LOCAL {name} = '{value}';" for name, value in TIMEOUTS.items())
CLOSE_TIMEOUT_SECONDS = 0.5  # a pool closes its connections one after the other


def _observed(method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @wraps(method)
    async def wrapper(self: "PooledConnection", query: str, *args: Any, **options: Any) -> Any:
        error: BaseException | None = None
        started = time.perf_counter()
        try:
            return await method(self, query, *args, **options)
        except BaseException as raised:
            self.raised = error = raised
            if self.is_pooled:
                self.forget_statements()  # a migration may have changed their types
            raise
        finally:
            if self.observers:
                seconds = time.perf_counter() - started
                for observe in self.observers:
                    observe(query, seconds, args, error)

    return wrapper


class PooledConnection(compat.Connection):
    """An asyncpg connection that records the errors it raises, and reports its statements.

    Of SQLAlchemy's statements only BEGIN, COMMIT, ROLLBACK and those with many sets of parameters
    pass through these methods; the engine's event reports the others.

    Attributes:
        raised: the error of the last failed statement. `Database.direct` uses it to tell database
            errors from errors of the caller.
        observers: called after each statement.
    """

    raised: BaseException | None = None
    observers: Sequence[QueryObserver] = ()

    def take_raised(self) -> BaseException | None:
        """Return the recorded error and clear it."""
        raised, self.raised = self.raised, None
        return raised

    @_observed
    async def execute(self, query: str, *args: Any, **options: Any) -> Any:
        if self.is_pooled and query.startswith("BEGIN"):  # in the same round trip
            query += SET_TIMEOUTS
        return await super().execute(query, *args, **options)

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 asyncpg's own
        """Close the connection; abort it if the server does not answer.

        asyncpg's own time limit does not include canceling a statement.

        Args:
            timeout: seconds; `CLOSE_TIMEOUT_SECONDS` by default. A shutdown may leave less.
        """
        seconds = shutdown_limit(CLOSE_TIMEOUT_SECONDS if timeout is None else timeout)
        with suppress(TimeoutError):  # asyncpg has aborted it
            async with asyncio.timeout(seconds):
                await super().close()

    executemany = _observed(asyncpg.Connection.executemany)
    fetch = _observed(asyncpg.Connection.fetch)
    fetchrow = _observed(asyncpg.Connection.fetchrow)
    fetchval = _observed(asyncpg.Connection.fetchval)


async def connect(
    url: URL,
    *,
    name: str,
    timeout: float | None = None,  # noqa: ASYNC109 asyncpg's own
    command_timeout: float | None = None,
    settings: Mapping[str, str] | None = None,
) -> PooledConnection:
    """Open a connection that has a session of its own on the server.

    It can listen for notifications, hold advisory locks and change settings.

    Args:
        url: a URL from `parse_database_url()`. Its `application_name` and `connect_timeout`
            override `name` and `timeout`; `settings` override its `options`.
        name: the `application_name` in `pg_stat_activity`.
        timeout: seconds to connect; `CONNECT_TIMEOUT_SECONDS` by default.
        command_timeout: seconds per statement; no limit by default.
        settings: server settings for this connection.

    Raises:
        TransactionPoolingError: the URL leads to a pooler in transaction mode.
        NoConnectionError: the connection failed, for any other reason.
        SystemExit: DATABASE_URL is not set.
    """
    open_connection = partial(
        _open, url, name=name, timeout=timeout, command_timeout=command_timeout
    )
    rejected: Mapping[str, str] = {}
    try:
        connection = await open_connection(settings=settings)
    except _RejectedSettingsError:
        connection, rejected = await open_connection(), settings or {}
    with _prepared(connection, url):
        if await pooler.is_pooled(connection):
            if not await pooler.has_session(connection, open_connection):
                raise TransactionPoolingError(host_and_port(url))
            for setting, value in rejected.items():
                await connection.execute("SELECT set_config($1, $2, false)", setting, value)
        connection.names_statements = True
    return connection


async def _open(
    url: URL,
    *,
    name: str,
    timeout: float | None = None,  # noqa: ASYNC109 asyncpg's own
    command_timeout: float | None = None,
    settings: Mapping[str, str] | None = None,
    kind: type[PooledConnection] = PooledConnection,
) -> PooledConnection:
    """Open a connection of a kind; the other arguments are those of `connect()`.

    Raises:
        _RejectedSettingsError: there is a pooler, which does not accept the settings.
        NoConnectionError: the connection failed, for any other reason.
        SystemExit: DATABASE_URL is not set.
    """
    require_url(url)
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
            connection_class=kind,
        )
    )
    with _translated(arguments["timeout"]):
        try:
            # asyncpg 0.32 can leave an exception that is never retrieved when it is canceled.
            connection: PooledConnection = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_discard)
            raise
    return connection


@contextmanager
def _translated(seconds: float) -> Iterator[None]:
    """Raise a `NoConnectionError` for each error of a connection attempt."""
    try:
        yield
    except NoConnectionError:
        raise
    except asyncpg.ProtocolViolationError as error:
        match = REJECTED_SETTING.match(str(error))
        kind = NoConnectionError if match is None else _RejectedSettingsError
        raise kind(str(error)) from error
    except (OSError, PostgresError, InterfaceError, InternalClientError) as error:
        raise NoConnectionError(_reason(error, seconds)) from error


@contextmanager
def _prepared(connection: PooledConnection, url: URL) -> Iterator[None]:
    """Close a connection if the block, which prepares it, fails."""
    try:
        with _translated(connect_timeout(url)):
            yield
    except BaseException:
        connection.terminate()
        raise


def unpooled_engine(
    url: URL, *, name: str, settings: Mapping[str, str] | None = None
) -> AsyncEngine:
    """Return an engine without a pool, for commands.

    Connecting exits with a message if the URL leads to a pooler in transaction mode.

    Args:
        url: as for `connect()`.
        name: the `application_name` in `pg_stat_activity`.
        settings: server settings for its connections.
    """

    async def create() -> PooledConnection:
        try:
            return await connect(url, name=name, settings=settings)
        except TransactionPoolingError as error:
            raise SystemExit(f"{error}. {error.remedy}.") from None

    return create_async_engine(
        url,
        async_creator=create,
        poolclass=NullPool,
        hide_parameters=True,
    )


def _discard(connecting: asyncio.Future[PooledConnection]) -> None:
    """Close a connection whose caller was canceled."""
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


class _RejectedSettingsError(NoConnectionError):
    """A pooler rejected a setting in the startup message."""


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


class _Connector:
    """Opens the connections of a pool, through a connection pooler if there is one.

    Args:
        url: as for `connect()`.
        observers: called after each statement.
        options: further arguments of `_open()`.
    """

    def __init__(self, url: URL, observers: Sequence[QueryObserver], **options: Any) -> None:
        self._url = url
        self._observers = observers
        self._options = options
        self._settings = {**TIMEOUTS, "jit": "off"}  # costs more than it saves on short queries
        self._is_direct = False
        self._reported: bool | None = None

    async def __call__(self) -> PooledConnection:
        try:
            connection = await self._open()
        except _RejectedSettingsError:
            self._settings = {}
            connection = await self._open()
        connection.names_statements = self._is_direct
        if not self._is_direct:
            with _prepared(connection, self._url):
                await self._adapt(connection)
        connection.observers = self._observers
        return connection

    async def _open(self) -> PooledConnection:
        return await _open(
            self._url,
            **self._options,
            # If the server does not respond at all. Its own statement_timeout comes first.
            command_timeout=STATEMENT_TIMEOUT_SECONDS + 2,
            settings=self._settings,
        )

    async def _adapt(self, connection: PooledConnection) -> None:
        if not await pooler.is_pooled(connection):
            self._is_direct = connection.names_statements = True
            return
        connection.names_statements = await pooler.forwards_prepared_statements(connection)
        connection.is_pooled = True
        connection.limit_statement_cache(TYPES_LIFETIME_SECONDS)
        if self._reported != connection.names_statements:
            self._reported = connection.names_statements
            log.info("connection pooler found", prepared_statements=connection.names_statements)


def pooled_engine(
    url: URL,
    pool_size: int,
    outage: Callable[..., DatabaseUnavailableError | None],
    observers: Sequence[QueryObserver],
    *,
    name: str = "quart-upsun",
    timeout: float | None = None,
    kind: type[PooledConnection] = PooledConnection,
) -> AsyncEngine:
    """Return the engine of a process.

    Args:
        url: as for `connect()`.
        pool_size: the maximum number of connections.
        outage: returns the error that replaces a driver's error, or None.
        observers: called after each statement.
        name, timeout: as for `connect()`.
        kind: the class of the connections.
    """
    engine = create_async_engine(
        url,
        async_creator=_Connector(url, observers, name=name, timeout=timeout, kind=kind),
        isolation_level="AUTOCOMMIT",
        poolclass=_Pool,
        pool_size=pool_size,
        max_overflow=0,
        pool_use_lifo=True,  # a server process that has just worked needs less CPU time
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
    def check(connection: Any, record: Any, proxy: Any) -> None:
        """Replace a connection that was closed while idle.

        asyncpg notices a closed socket by itself, so this needs no round trip per checkout, unlike
        `pool_pre_ping`.
        """
        driver_connection: PooledConnection = connection.driver_connection
        if driver_connection.is_closed():
            raise InvalidatePoolError
        if not driver_connection.names_statements:
            cache_no_statements(connection)

    @event.listens_for(engine.sync_engine, "do_execute")
    def execute_and_observe(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        """Execute a statement, and again if a migration has made its cached plan invalid.

        During a rolling deploy the previous release runs on the next release's schema.
        """
        error: BaseException | None = None
        started = time.perf_counter()
        try:
            execute_again_if_stale(cursor, statement, parameters, context)
        except BaseException as raised:
            error = raised
            raise
        finally:
            seconds = time.perf_counter() - started
            for observe in observers:
                observe(statement, seconds, parameters, error)
        return True

    return engine


def is_unusable(error: BaseException) -> bool:
    """Tell whether an error means that the connection must not be reused.

    A server that timed out would keep the next request waiting too, and a session stays read-only
    after the database has become writable.
    """
    return isinstance(error, OSError) or sqlstate(error) == READ_ONLY
