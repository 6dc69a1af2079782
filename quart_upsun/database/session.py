"""`read()` and `write()` sessions; `direct()` for the few statements that most requests need."""

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

# Seconds. A request that cannot have its connection or its answer in this time is better refused:
# behind a router that spreads requests over instances, waiting only moves the queue in here.
POOL_TIMEOUT_SECONDS = 2.0
# What takes its place where no request is waiting, but many jobs at once are.
pool_timeout: ContextVar[float | None] = ContextVar("patience", default=None)
# How long a read-only database is not asked again. Each time costs new connections.
READ_ONLY_INTERVAL_SECONDS = 1.0
# How long a rollback may take; then its connection is closed, which has the same effect.
ROLLBACK_TIMEOUT_SECONDS = 2.0


class Database:
    """One process's way to PostgreSQL.

    Opens no connection before it is asked for one, so the application boots without a database.

    Args:
        url: where it is.
        pool_size: how many connections are kept at most.
        migrations: the directory of Alembic's scripts; None for an application without any.
        preview: the environment's name, where people must not be served before `quart sanitize`.
    """

    def __init__(
        self,
        url: URL,
        *,
        pool_size: int,
        migrations: Path | None = None,
        preview: str | None = None,
    ) -> None:
        # In AUTOCOMMIT by itself: a query is one round trip instead of three (BEGIN, query,
        # ROLLBACK), and only who writes has to switch the connection over.
        self.engine = pooled_engine(url, pool_size, self._outage)
        self._writing = self.engine.execution_options(isolation_level="READ COMMITTED")
        # SQLAlchemy's pool lets whoever comes just now overtake those who wait, again and again; a
        # semaphore serves them in turn. Measured with 32 clients: p99 of 123 ms instead of 585.
        self._turns = asyncio.Semaphore(pool_size)
        self._waiting = 0
        self._read_only_until = float("-inf")
        self.gate = SchemaGate(self, migrations=migrations, preview=preview)

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Give a session for queries: each is its own transaction.

        Errors of the caller's own pass through, whatever their type.

        Raises:
            DatabaseUnavailableError: no connection was free in time, the connection was lost, or
                the schema is not there yet. Raised where it happens, so the block itself can catch
                it.
            ReadOnlyDatabaseError: for a statement that changes something.
        """
        return self._session(self.engine)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Give a session in a transaction that commits at the end, or rolls back as a whole.

        Errors of the caller's own pass through after the rollback, whatever their type.

        Raises:
            DatabaseUnavailableError: as `read()`, or the connection was lost before the end. Only
                if that happened in the middle of the commit itself may the change have been made.
            ReadOnlyDatabaseError: the database accepts no changes.
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
        """How many wait for one of the connections to be free."""
        return self._waiting

    @property
    def is_read_only(self) -> bool:
        """Whether the database was found to be read-only a moment ago."""
        return time.monotonic() < self._read_only_until

    async def accepts_changes(self) -> bool:
        """Ask PostgreSQL whether it accepts changes; a no is cached for a second.

        Raises:
            DatabaseUnavailableError: as `read()`.
        """
        if self.is_read_only:
            return False
        for _ in range(2):
            async with self.read() as session:
                if await session.scalar(text("SHOW transaction_read_only")) == "off":
                    return True
                await session.invalidate()
            # This stays so for sessions that began before the database was writable again.
            await self.engine.dispose()
        self._read_only_until = time.monotonic() + READ_ONLY_INTERVAL_SECONDS
        return False

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def direct(self) -> AsyncIterator[Connection]:
        """Give asyncpg's own connection, for a `Statement`: each is its own transaction.

        It is one of the pool's, so who waits for another one inside of it keeps others from theirs,
        as inside of `read()`.

        Raises:
            DatabaseUnavailableError: as `read()`, but at the end of the block. All other errors are
                asyncpg's, and not SQLAlchemy's.
        """
        async with self._admitted():
            pooled = await self.engine.raw_connection()
            connection = cast(PooledConnection, pooled.driver_connection)
            connection.take_raised()
            try:
                yield connection
            except Exception as error:
                if error is connection.raised:
                    self._judge(error, is_lost=connection.is_closed())
                raise
            finally:
                raised = connection.take_raised()
                try:
                    if isinstance(raised, asyncio.CancelledError):
                        # It may be busy with what nobody waits for. This also tells the server.
                        await _shield(greenlet_spawn(pooled.invalidate))
                    elif raised is not None and is_unusable(raised):
                        pooled.invalidate()  # without a word: the server has none either
                finally:
                    pooled.close()  # waits for nothing: no transaction was begun

    def _judge(self, error: Exception, *, is_lost: bool) -> None:
        outage = self._outage(error, is_lost=is_lost)
        if outage is not None:
            raise outage from error
        if sqlstate(error) in UNDEFINED_OBJECT:
            raise UndefinedObjectError(error)

    def _outage(self, error: BaseException, *, is_lost: bool) -> DatabaseUnavailableError | None:
        """Return what an error of the driver means if the database is the cause; else None.

        Args:
            error: raised by asyncpg or SQLAlchemy's adapter of it for one of our connections.
            is_lost: whether the connection has ended.
        """
        state = sqlstate(error) or ""
        if state == READ_ONLY:
            self._read_only_until = time.monotonic() + READ_ONLY_INTERVAL_SECONDS
            return ReadOnlyDatabaseError()
        if state == LOCK_NOT_AVAILABLE:
            return LockTimeoutError("a lock in the database was not released in time")
        if is_lost or isinstance(error, OSError):  # TimeoutError among them
            # From here on the gate asks, once for all who wait, until the database is back.
            self.gate.close()
        if isinstance(error, OSError) or (is_lost and not state.startswith(TRANSIENT_ERRORS)):
            return DatabaseUnavailableError("the connection to the database was lost")
        if state.startswith(TRANSIENT_ERRORS):
            return DatabaseUnavailableError("the database gave up on a statement")
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
            # Not by `async with`, which makes a task of it, so that it cannot be cut off.
            # Here it waits for nothing: no transaction is open any more.
            await session.close()

    @asynccontextmanager
    async def _admitted(self, *, gated: bool = True) -> AsyncIterator[None]:
        """Wait for the gate and for a connection to be free.

        Judges no other error: a `TimeoutError` here may be that of a call elsewhere.
        """
        if gated and not self.gate.is_open:
            await self.gate.check()
        try:
            async with self._turn():
                yield
            return
        except NoConnectionError as error:
            self.gate.close()
            raise DatabaseUnavailableError("no connection to the database") from error.__cause__
        except UndefinedObjectError as error:
            undefined = error.original
        # A restore or a data sync may have replaced the schema under our feet.
        self.gate.close()
        await self.gate.check()
        raise undefined

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one of the pool's connections to be free."""
        if self._turns.locked():
            await self._wait()
        else:
            await self._turns.acquire()  # at once, and without a clock
        try:
            yield
        finally:
            self._turns.release()

    async def _wait(self) -> None:
        self._waiting += 1
        try:
            with pause_time_limit():
                async with asyncio.timeout(pool_timeout.get() or POOL_TIMEOUT_SECONDS):
                    await self._turns.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailableError("all connections are busy") from error
        finally:
            self._waiting -= 1


async def _roll_back(session: AsyncSession) -> None:
    """Roll back; close the connection if that fails, so that the first error is not hidden."""
    try:
        async with asyncio.timeout(ROLLBACK_TIMEOUT_SECONDS):
            await session.rollback()
    except (DatabaseUnavailableError, DBAPIError, TimeoutError):
        await session.invalidate()


async def _shield(work: Awaitable[None]) -> None:
    """Wait for the end of `work` however often this task is cancelled meanwhile.

    Left earlier, its connection would be back in the pool while it is still used.

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
