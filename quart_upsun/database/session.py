"""The connection pool: `read()` and `write()` sessions, and `direct()` for hot statements."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from quart_upsun.compat.sqlalchemy import await_only, greenlet_spawn
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
from quart_upsun.database.log_position import current_reads
from quart_upsun.database.replica import Replica, ReplicaSession
from quart_upsun.database.usage import QueryObserver, count_query, count_wait
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
        url: the database, or a connection pooler in front of it.
        direct_url: the database itself; `url` by default.
        pool_size: the maximum number of connections.
        migrations: the directory of the Alembic scripts; None for an application without
            migrations.
        preview: the name of this preview, whose data must be sanitized before it is served; None
            elsewhere.
        replica_url: a read replica of the database, if there is one.

    Attributes:
        direct_url: the database, for connections with a session of their own.
        pool_size: the maximum number of connections.
        replica: the read replica, with a pool of the same size; None without one.
        query_observers: called after each statement, those of `direct()` included.
    """

    def __init__(
        self,
        url: URL,
        *,
        direct_url: URL | None = None,
        pool_size: int,
        migrations: Path | None = None,
        preview: str | None = None,
        replica_url: URL | None = None,
    ) -> None:
        # AUTOCOMMIT by default: a query is one round trip instead of three (BEGIN, query,
        # ROLLBACK). Only `write()` switches the isolation level.
        self.direct_url = direct_url or url
        self.query_observers: list[QueryObserver] = [count_query]
        self.engine = pooled_engine(url, pool_size, self._outage, self.query_observers)
        self._writing = self.engine.execution_options(isolation_level="READ COMMITTED")
        # SQLAlchemy's pool is not fair: new callers overtake waiting ones. A semaphore serves them
        # in order. Measured with 32 clients: p99 of 123 ms instead of 585.
        self.pool_size = pool_size
        self._slots = Slots(pool_size)
        self._read_only_until = float("-inf")
        self.gate = SchemaGate(self, migrations=migrations, preview=preview)
        self.replica: Replica | None = None
        if replica_url is not None:
            self.replica = Replica(
                replica_url,
                pool_size,
                primary=lambda: self.direct(exact=True),
                observers=self.query_observers,
            )
            self._replica_slots = Slots(pool_size)

    def read(self, *, exact: bool = False) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a session for queries. Each query is a transaction of its own.

        With a read replica, the queries of a request run there. They include what the same client
        has written, but changes of others only after some milliseconds. A query that fails on the
        replica runs on the primary, like the rest of its session. Outside of requests, all queries
        run on the primary.

        Exceptions that the block raises itself pass through.

        Args:
            exact: whether the queries must include all changes, or change something themselves:
                they run on the primary.

        Raises:
            DatabaseUnavailableError: the pool timed out, the connection was lost, or the schema is
                not ready. It is raised by the statement, so the block can catch it.
            ReadOnlyDatabaseError: a statement tried to change data of a read-only database.
        """
        if exact or self.replica is None:
            return self._session(self.engine)
        return self._read_from_replica(self.replica)

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
                if self.replica is not None and (reads := current_reads.get()) is not None:
                    # Before the commit, because one that fails may have been done.
                    reads.has_written = True
                await session.commit()
            except BaseException:
                await _shield(_roll_back(session))
                raise

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a pooled connection to the primary."""
        return self._slots.waiting

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
            async with self.read(exact=True) as session:
                if await session.scalar(text("SHOW transaction_read_only")) == "off":
                    return True
                await session.invalidate()
            # Sessions that began while it was read-only stay so after it is writable again.
            await self.engine.dispose()
        self._read_only_until = time.monotonic() + READ_ONLY_INTERVAL_SECONDS
        return False

    async def close(self) -> None:
        await self.engine.dispose()
        if self.replica is not None:
            await self.replica.close()

    def direct(self, *, exact: bool = False) -> AbstractAsyncContextManager[Connection]:
        """Borrow a pooled asyncpg connection for a `Statement`. Each is a transaction of its own.

        Do not open a session inside the block: it would hold two connections of the pool.

        Args:
            exact: as for `read()`.

        Raises:
            DatabaseUnavailableError: as for `read()`, but at the end of the block. Other errors are
                those of asyncpg, not SQLAlchemy.
        """
        if exact or self.replica is None:
            return self._borrowed(self.engine, self._admitted())
        return self._borrowed_from_replica(self.replica)

    @asynccontextmanager
    async def _borrowed(
        self, engine: AsyncEngine, admission: AbstractAsyncContextManager[None]
    ) -> AsyncIterator[Connection]:
        async with admission:
            pooled = await engine.raw_connection()
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
        self,
        engine: AsyncEngine,
        *,
        gated: bool = True,
        admission: AbstractAsyncContextManager[None] | None = None,
        **options: Any,
    ) -> AsyncIterator[AsyncSession]:
        async with admission or self._admitted(gated=gated):
            session = AsyncSession(engine, expire_on_commit=False, autoflush=False, **options)
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
        await self._slots.enter()
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

    @asynccontextmanager
    async def _read_from_replica(self, replica: Replica) -> AsyncIterator[AsyncSession]:
        """Open a session on the replica, if it is usable. It moves to the primary if it fails."""
        if not self.gate.is_open:
            await self.gate.check()
        async with AsyncExitStack() as stack:

            def move() -> Engine:
                await_only(stack.enter_async_context(self._admitted()))
                return self.engine.sync_engine

            admitted = False
            if await replica.accepts_read():
                with suppress(DatabaseUnavailableError):
                    await stack.enter_async_context(self._replica_slots)
                    admitted = True
            opening = (
                self._session(
                    replica.engine,
                    admission=nullcontext(),
                    sync_session_class=ReplicaSession,
                    move=move,
                )
                if admitted
                else self._session(self.engine)
            )
            async with opening as session:
                yield session

    @asynccontextmanager
    async def _borrowed_from_replica(self, replica: Replica) -> AsyncIterator[Connection]:
        """Borrow a connection to the replica, if it is usable, otherwise one to the primary."""
        if not self.gate.is_open:
            await self.gate.check()
        async with AsyncExitStack() as stack:
            connection = None
            if await replica.accepts_read():
                with suppress(DatabaseUnavailableError, NoConnectionError):
                    connection = await stack.enter_async_context(
                        self._borrowed(replica.engine, self._replica_slots)
                    )
            if connection is None:
                connection = await stack.enter_async_context(self.direct(exact=True))
            yield connection


class Slots(asyncio.Semaphore, AbstractAsyncContextManager[None]):
    """The right to use a connection of a pool, in the order of the callers.

    Attributes:
        waiting: the number of callers that wait.
    """

    waiting = 0

    async def __aenter__(self) -> None:
        await self.enter()

    async def enter(self) -> None:
        """Wait for a free connection; `release()` gives it back.

        Raises:
            DatabaseUnavailableError: it took longer than `pool_timeout`.
        """
        if not self.locked():
            await self.acquire()  # free: no timeout needed
            return
        self.waiting += 1
        started = time.perf_counter()
        try:
            with pause_time_limit():
                async with asyncio.timeout(pool_timeout.get() or POOL_TIMEOUT_SECONDS):
                    await self.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailableError("all pooled connections are in use") from error
        finally:
            self.waiting -= 1
            count_wait(time.perf_counter() - started)


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
