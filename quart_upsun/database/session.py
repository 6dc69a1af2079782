"""The connection pool: `read()` and `write()` sessions, and `direct()` for hot statements."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import cast

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from quart_upsun.compat.sqlalchemy import greenlet_spawn
from quart_upsun.database.connection import (
    Connection,
    PooledConnection,
    is_unusable,
    pooled_engine,
)
from quart_upsun.database.errors import (
    LOCK_NOT_AVAILABLE,
    READ_ONLY,
    TRANSIENT_ERRORS,
    UNDEFINED_OBJECT,
    DatabaseUnavailableError,
    LockTimeoutError,
    NoConnectionError,
    ReadOnlyDatabaseError,
    UndefinedObjectError,
    sqlstate,
)
from quart_upsun.database.gate import SchemaGate
from quart_upsun.time_limits import pause_time_limit

# A request that waits longer than this for a pooled connection gets 503. Waiting longer would only
# move the router's queue into this process.
POOL_TIMEOUT_SECONDS = 2.0
# Overrides POOL_TIMEOUT_SECONDS in its context; jobs do so, since no client waits for them.
pool_timeout: ContextVar[float | None] = ContextVar("pool_timeout", default=None)
# How long "read-only" is cached. Each check of a read-only database costs new connections.
READ_ONLY_INTERVAL_SECONDS = 1.0
# After this time the connection is closed instead, which also rolls back.
ROLLBACK_TIMEOUT_SECONDS = 2.0


class Database:
    """The connection pool of a process.

    It connects on first use, so the application boots without a database.

    Args:
        url: the database.
        pool_size: the maximum number of connections.
        migrations: the directory of the Alembic scripts; None for an application without
            migrations.
        preview: the name of this preview, whose data must be sanitized before it is served; None
            elsewhere.
    """

    def __init__(
        self,
        url: URL,
        *,
        pool_size: int,
        migrations: Path | None = None,
        preview: str | None = None,
    ) -> None:
        # AUTOCOMMIT by default: a query is one round trip instead of three (BEGIN, query,
        # ROLLBACK). Only `write()` switches the isolation level.
        self.engine = pooled_engine(url, pool_size, self._outage)
        self._writing = self.engine.execution_options(isolation_level="READ COMMITTED")
        # SQLAlchemy's pool is not fair: new callers overtake waiting ones. A semaphore serves them
        # in order. Measured with 32 clients: p99 of 123 ms instead of 585.
        self._slots = asyncio.Semaphore(pool_size)
        self._waiting = 0
        self._read_only_until = float("-inf")
        self.gate = SchemaGate(self, migrations=migrations, preview=preview)

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a session for queries. Each query is a transaction of its own.

        Exceptions that the block raises itself pass through.

        Raises:
            DatabaseUnavailableError: the pool timed out, the connection was lost, or the schema is
                not ready. It is raised by the statement, so the block can catch it.
            ReadOnlyDatabaseError: a statement tried to change data of a read-only database.
        """
        return self._session(self.engine)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open a session with a transaction: commit at the end, roll back on an exception.

        Exceptions that the block raises itself pass through after the rollback.

        Raises:
            DatabaseUnavailableError: as for `read()`. If the connection was lost during the commit,
                the change may have been committed; otherwise it was rolled back.
            ReadOnlyDatabaseError: the database is read-only.
        """
        if self.is_read_only:
            raise ReadOnlyDatabaseError
        async with self._session(self._writing) as session:
            try:
                yield session
                await session.commit()
            except BaseException:
                await _shield(_roll_back(session))
                raise

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a pooled connection."""
        return self._waiting

    @property
    def is_read_only(self) -> bool:
        """Whether the database was read-only within the last second."""
        return time.monotonic() < self._read_only_until

    async def accepts_changes(self) -> bool:
        """Check that the database is not read-only; a negative result is cached for a second.

        Raises:
            DatabaseUnavailableError: as for `read()`.
        """
        if self.is_read_only:
            return False
        for _ in range(2):
            async with self.read() as session:
                if await session.scalar(text("SHOW transaction_read_only")) == "off":
                    return True
                await session.invalidate()
            # Sessions that began while it was read-only stay so after it is writable again.
            await self.engine.dispose()
        self._read_only_until = time.monotonic() + READ_ONLY_INTERVAL_SECONDS
        return False

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def direct(self) -> AsyncIterator[Connection]:
        """Borrow a pooled asyncpg connection for a `Statement`. Each is a transaction of its own.

        Do not open a session inside the block: it would hold two connections of the pool.

        Raises:
            DatabaseUnavailableError: as for `read()`, but at the end of the block. Other errors are
                those of asyncpg, not SQLAlchemy.
        """
        async with self._admitted():
            pooled = await self.engine.raw_connection()
            connection = cast(PooledConnection, pooled.driver_connection)
            connection.take_raised()
            try:
                yield connection
            except Exception as error:
                if error is connection.raised:
                    self._translate(error, is_lost=connection.is_closed())
                raise
            finally:
                raised = connection.take_raised()
                try:
                    if isinstance(raised, asyncio.CancelledError):
                        # The statement may still run; this also cancels it on the server.
                        await _shield(greenlet_spawn(pooled.invalidate))
                    elif raised is not None and is_unusable(raised):
                        pooled.invalidate()  # closes without a goodbye, since the server is silent
                finally:
                    pooled.close()  # does not block: no transaction is open

    def _translate(self, error: Exception, *, is_lost: bool) -> None:
        outage = self._outage(error, is_lost=is_lost)
        if outage is not None:
            raise outage from error
        if sqlstate(error) in UNDEFINED_OBJECT:
            raise UndefinedObjectError(error)

    def _outage(self, error: BaseException, *, is_lost: bool) -> DatabaseUnavailableError | None:
        """Return the `DatabaseUnavailableError` for a driver error; None if it is no outage.

        Args:
            error: raised by asyncpg, or by SQLAlchemy's adapter of it, for a pooled connection.
            is_lost: whether the connection is closed.
        """
        state = sqlstate(error) or ""
        if state == READ_ONLY:
            self._read_only_until = time.monotonic() + READ_ONLY_INTERVAL_SECONDS
            return ReadOnlyDatabaseError()
        if state == LOCK_NOT_AVAILABLE:
            return LockTimeoutError("timed out while waiting for a lock in the database")
        if is_lost or isinstance(error, OSError):  # TimeoutError among them
            # The gate now checks, once for all callers, until the database is back.
            self.gate.close()
        if isinstance(error, OSError) or (is_lost and not state.startswith(TRANSIENT_ERRORS)):
            return DatabaseUnavailableError("the connection to the database was lost")
        if state.startswith(TRANSIENT_ERRORS):
            return DatabaseUnavailableError("the database canceled a statement")
        return None

    @asynccontextmanager
    async def _session(
        self, engine: AsyncEngine, *, gated: bool = True
    ) -> AsyncIterator[AsyncSession]:
        async with self._admitted(gated=gated):
            session = AsyncSession(engine, expire_on_commit=False, autoflush=False)
            try:
                yield session
            except BaseException as error:
                await _shield(session.close())
                if gated and isinstance(error, DBAPIError) and sqlstate(error) in UNDEFINED_OBJECT:
                    raise UndefinedObjectError(error) from None
                raise
            # Not with `async with`, which closes in a separate task. No transaction is open here,
            # so closing does not block.
            await session.close()

    @asynccontextmanager
    async def _admitted(self, *, gated: bool = True) -> AsyncIterator[None]:
        """Wait for the schema gate and a free connection.

        Other errors of the block pass through: a `TimeoutError`, for instance, may come from code
        that has nothing to do with the database.
        """
        if gated and not self.gate.is_open:
            await self.gate.check()
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()  # free: no timeout needed
        try:
            yield
            return
        except NoConnectionError as error:
            self.gate.close()
            raise DatabaseUnavailableError("no connection to the database") from error.__cause__
        except UndefinedObjectError as error:
            undefined = error.original
        finally:
            self._slots.release()
        # A restore or a data sync may have replaced the schema.
        self.gate.close()
        await self.gate.check()
        raise undefined

    async def _wait(self) -> None:
        self._waiting += 1
        try:
            with pause_time_limit():
                async with asyncio.timeout(pool_timeout.get() or POOL_TIMEOUT_SECONDS):
                    await self._slots.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailableError("all pooled connections are in use") from error
        finally:
            self._waiting -= 1


async def _roll_back(session: AsyncSession) -> None:
    """Roll back, or close the connection if that fails, without hiding the first error."""
    try:
        async with asyncio.timeout(ROLLBACK_TIMEOUT_SECONDS):
            await session.rollback()
    except (DatabaseUnavailableError, DBAPIError, TimeoutError):
        await session.invalidate()


async def _shield(work: Awaitable[None]) -> None:
    """Await `work` to its end, even if this task is cancelled meanwhile.

    Otherwise the connection would return to the pool while it is still in use.

    Raises:
        CancelledError: afterwards, if this task was cancelled.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
