"""The engine, `read()` and `write()` sessions, the base of all models, and the schema gate.

`direct()` is beside the two, for the few statements that most requests need (`app.statements`).
"""

import asyncio
import importlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial, wraps
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import asyncpg
from asyncpg import InterfaceError, InternalClientError, PostgresError
from sqlalchemy import URL, MetaData, event, text
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, PoolProxiedConnection, QueuePool
from sqlalchemy.util import greenlet_spawn

from app import logs
from app.database_url import connect_arguments
from app.preview.columns import Rules
from app.time_limits import paused

log = logs.get(__name__)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MIGRATIONS = Path(__file__).parent.parent / "alembic"

# Seconds. A request that cannot have its connection or its answer in this time is better refused:
# behind a router that spreads requests over instances, waiting only moves the queue in here.
POOL_TIMEOUT = 2.0
# What takes its place where no request is waiting, but many jobs at once are.
patience: ContextVar[float | None] = ContextVar("patience", default=None)
# Longer: a process that is short of processor, such as while another release starts beside it, has
# a connection that is there already answered in a moment, and needs many moments for a new one.
CONNECT_TIMEOUT = 5.0
STATEMENT_TIMEOUT = 8
LOCK_TIMEOUT = 4
# How often the gate asks at most while it is closed.
GATE_INTERVAL = 0.25
# How long a read-only database is not asked again. Each time costs new connections.
READ_ONLY_INTERVAL = 1.0
# How long a rollback may take; then its connection is closed, which has the same effect.
ROLLBACK_TIMEOUT = 2.0
# How long its answer is good for in a preview while it is open: a data sync or a restore can bring
# people back under our feet.
PREVIEW_INTERVAL = 2.0

# https://www.postgresql.org/docs/18/errcodes-appendix.html
UNDEFINED_TABLE = "42P01"
UNDEFINED = {UNDEFINED_TABLE, "42703", "3F000"}  # table, column, schema
# Connections, resources, operator intervention (timeouts and shutdown among it), serialization
# failures and deadlocks, and transactions that the server has ended because they took too long.
TRANSIENT = ("08", "53", "57", "58", "40", "25P03", "25P04")
LOCK_NOT_AVAILABLE = "55P03"
# After a failover to a standby, or while `default_transaction_read_only` is on.
READ_ONLY = "25006"

LARGEST_ID = 2**63 - 1  # that a column can hold, and a query be asked for


class Base(DeclarativeBase):
    """The base of all models. Constraint names are part of the schema, so they are ruled here."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    __sanitize__: ClassVar[Rules]
    """What happens to the data in a preview; each model says it."""


def _remembering(method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
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

    execute = _remembering(asyncpg.Connection.execute)
    executemany = _remembering(asyncpg.Connection.executemany)
    fetch = _remembering(asyncpg.Connection.fetch)
    fetchrow = _remembering(asyncpg.Connection.fetchrow)
    fetchval = _remembering(asyncpg.Connection.fetchval)


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
        timeout: seconds until it is connected; `CONNECT_TIMEOUT` by default.
        command_timeout: seconds for one statement; without a limit by default.
        settings: of the server, for this connection.

    Raises:
        NoConnectionError: for whatever reason.
    """
    arguments = connect_arguments(url)
    arguments = {"timeout": CONNECT_TIMEOUT if timeout is None else timeout, **arguments}
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
    return float(connect_arguments(url).get("timeout", CONNECT_TIMEOUT))


def _reason(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} seconds"
    if isinstance(error, OSError) and error.errno:
        # asyncio's own text lists all addresses of a name; the numbers of a lookup are negative.
        return os.strerror(error.errno) if error.errno > 0 else error.strerror or str(error)
    return str(error) or type(error).__name__


def load_models() -> None:
    """Import the models of every feature, so that `Base.metadata` knows all tables."""
    root = Path(__file__).parent
    for models in sorted(root.glob("*/models.py")):
        importlib.import_module(f"app.{models.parent.name}.models")


class Unavailable(Exception):
    """The database does not answer in time; a later attempt may succeed."""


class NoConnectionError(ConnectionError):
    """PostgreSQL could not be connected to. The text says why."""


class _UndefinedError(Exception):
    """A statement named a table or column that does not exist."""

    def __init__(self, original: Exception) -> None:
        super().__init__(str(original))
        self.original = original


class ReadOnlyDatabaseError(Unavailable):
    """PostgreSQL answers, but does not accept changes at the moment."""

    def __init__(self) -> None:
        super().__init__("the database is read-only")


class LockTimeoutError(Unavailable):
    """Another transaction has held a lock for longer than `LOCK_TIMEOUT`."""


class SchemaBehind(Unavailable):
    """The database's schema is older than this code needs.

    Attributes:
        found: the revision the database is at; None when it was never migrated.
        needed: the revision this code was written for.
    """

    def __init__(self, found: str | None, needed: str) -> None:
        super().__init__(f"the schema is at revision {found or 'none'}, this code needs {needed}")
        self.found = found
        self.needed = needed


class Unsanitized(Unavailable):
    """This is a preview, and its data still tell about people."""

    def __init__(self, environment: str) -> None:
        super().__init__(f"the data of {environment} are not sanitized (`quart sanitize` does it)")
        self.environment = environment


class Database:
    """One process's way to PostgreSQL.

    Opens no connection before it is asked for one, so the application boots without a database.

    Args:
        url: where it is.
        pool_size: how many connections are kept at most.
        preview: the environment's name, where people must not be served before `quart sanitize`.
    """

    def __init__(self, url: URL, *, pool_size: int, preview: str | None = None) -> None:
        # In AUTOCOMMIT by itself: a query is one round trip instead of three (BEGIN, query,
        # ROLLBACK), and only who writes has to switch the connection over.
        self.engine = _engine(url, pool_size, self._outage)
        self._writing = self.engine.execution_options(isolation_level="READ COMMITTED")
        # SQLAlchemy's pool lets whoever comes just now overtake those who wait, again and again; a
        # semaphore serves them in turn. Measured with 32 clients: p99 of 123 ms instead of 585.
        self._turns = asyncio.Semaphore(pool_size)
        self._waiting = 0
        self._read_only_until = float("-inf")
        self.gate = SchemaGate(self, preview)

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Give a session for queries: each is its own transaction.

        Errors of the caller's own pass through, whatever their type.

        Raises:
            Unavailable: no connection was free in time, the connection was lost, or the schema is
                not there yet. Raised where it happens, so the block itself can catch it.
            ReadOnlyDatabaseError: for a statement that changes something.
        """
        return self._session(self.engine)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Give a session in a transaction that commits at the end, or rolls back as a whole.

        Errors of the caller's own pass through after the rollback, whatever their type.

        Raises:
            Unavailable: as `read()`, or the connection was lost before the end. Only if that
                happened in the middle of the commit itself may the change have been made.
            ReadOnlyDatabaseError: the database accepts no changes.
        """
        if self.is_read_only:
            raise ReadOnlyDatabaseError
        async with self._session(self._writing) as session:
            try:
                yield session
                await session.commit()
            except BaseException:
                await _to_the_end(_roll_back(session))
                raise

    @property
    def waiting(self) -> int:
        """How many wait for one of the connections to be free."""
        return self._waiting

    @property
    def is_read_only(self) -> bool:
        """Whether the database was found to be read-only within the last `READ_ONLY_INTERVAL`."""
        return time.monotonic() < self._read_only_until

    async def accepts_changes(self) -> bool:
        """Ask PostgreSQL whether it accepts changes; a no is repeated for `READ_ONLY_INTERVAL`.

        Raises:
            Unavailable: as `read()`.
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
        self._read_only_until = time.monotonic() + READ_ONLY_INTERVAL
        return False

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def direct(self) -> AsyncIterator[Connection]:
        """Give asyncpg's own connection, for a `Statement`: each is its own transaction.

        It is one of the pool's, so who waits for another one inside of it keeps others from theirs,
        as inside of `read()`.

        Raises:
            Unavailable: as `read()`, but at the end of the block. All other errors are asyncpg's,
                and not SQLAlchemy's.
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
                        await _to_the_end(greenlet_spawn(pooled.invalidate))
                    elif raised is not None and _is_unusable(raised):
                        pooled.invalidate()  # without a word: the server has none either
                finally:
                    pooled.close()  # waits for nothing: no transaction was begun

    def _judge(self, error: Exception, *, is_lost: bool) -> None:
        outage = self._outage(error, is_lost=is_lost)
        if outage is not None:
            raise outage from error
        if _sqlstate(error) in UNDEFINED:
            raise _UndefinedError(error)

    def _outage(self, error: BaseException, *, is_lost: bool) -> Unavailable | None:
        """Return what an error of the driver means if the database is the cause; else None.

        Args:
            error: raised by asyncpg or SQLAlchemy's adapter of it for one of our connections.
            is_lost: whether the connection has ended.
        """
        state = _sqlstate(error) or ""
        if state == READ_ONLY:
            self._read_only_until = time.monotonic() + READ_ONLY_INTERVAL
            return ReadOnlyDatabaseError()
        if state == LOCK_NOT_AVAILABLE:
            return LockTimeoutError("a lock in the database was not released in time")
        if is_lost or isinstance(error, OSError):  # TimeoutError among them
            # From here on the gate asks, once for all who wait, until the database is back.
            self.gate.close()
        if isinstance(error, OSError) or (is_lost and not state.startswith(TRANSIENT)):
            return Unavailable("the connection to the database was lost")
        if state.startswith(TRANSIENT):
            return Unavailable("the database gave up on a statement")
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
                await _to_the_end(session.close())
                if gated and isinstance(error, DBAPIError) and _sqlstate(error) in UNDEFINED:
                    raise _UndefinedError(error) from None
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
            raise Unavailable("no connection to the database") from error.__cause__
        except _UndefinedError as error:
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
            with paused():
                async with asyncio.timeout(patience.get() or POOL_TIMEOUT):
                    await self._turns.acquire()
        except TimeoutError as error:
            raise Unavailable("all connections are busy") from error
        finally:
            self._waiting -= 1


class SchemaGate:
    """Lets requests through to the database once its schema serves this code.

    A release starts before its deploy hook has migrated, so "behind" is a normal state at boot.
    A revision this code does not know comes from a newer release: migrations are written so that
    the release before can live with them, and it is served.

    In a preview, whose data are a copy of production's, it lets nobody through before they are
    sanitized.
    """

    def __init__(self, database: Database, preview: str | None = None) -> None:
        self._database = database
        self._preview = preview
        self.needed, self._known = _revisions(MIGRATIONS)
        self._opened = False
        self._lock = asyncio.Lock()
        self._asked = self._checked = float("-inf")  # when the last question began, and ended
        self._verdict: Unavailable | None = None
        self._logged: str | None = None
        self._questions: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether a session may begin without asking."""
        return self._opened and (
            self._preview is None or time.monotonic() - self._checked < PREVIEW_INTERVAL
        )

    def close(self) -> None:
        """Ask the database again before the next session."""
        self._opened = False
        self._checked = float("-inf")

    async def check(self) -> None:
        """Ask the database for its revision, at most once in `GATE_INTERVAL` for all who wait.

        Raises:
            Unavailable: the database does not answer.
            SchemaBehind: it does, and must be migrated first.
            Unsanitized: it does, and tells about people.
        """
        came = time.monotonic()
        async with self._lock:
            rest = self._checked + GATE_INTERVAL - time.monotonic()
            if isinstance(self._verdict, SchemaBehind | Unsanitized) and self._asked < came:
                # Whoever comes after the deploy hook has ended must not hear what was so before.
                await asyncio.sleep(rest)
                await self._ask()
            elif rest < 0:
                await self._ask()
        if self._verdict is not None:
            # Raised many times: without this every raise would lengthen the same traceback.
            raise self._verdict.with_traceback(None)

    async def wait(self) -> None:
        """Return once it is open; asks again and again.

        A server does so from its start: the requests that a deploy has held come all at once, and
        then is no time to connect for the first time.
        """
        while not self.is_open:
            with suppress(Unavailable):
                await self.check()
                break
            await asyncio.sleep(GATE_INTERVAL)

    async def _ask(self) -> None:
        self._asked = time.monotonic()
        try:
            found, sanitized = await self._answer()
        except Unavailable as error:
            self._verdict = error
            self._say("database unavailable", reason=str(error), cause=repr(error.__cause__))
        else:
            if found is None or (found in self._known and found != self.needed):
                self._verdict = SchemaBehind(found, self.needed)
                self._say("schema behind", database=found, needed=self.needed)
            elif self._preview is not None and not sanitized:
                self._verdict = Unsanitized(self._preview)
                self._say("data not sanitized", environment=self._preview, mend="quart sanitize")
            else:
                self._verdict = None
                if not self._opened:
                    # Plans prepared before the migration may no longer fit.
                    await self._database.engine.dispose()
                    self._say("schema ready", database=found, needed=self.needed)
        self._opened = self._verdict is None
        self._checked = time.monotonic()

    async def _answer(self) -> tuple[str | None, bool]:
        """Return the database's revision, and whether its data are sanitized for this preview.

        A host that takes the question and never says a word would keep all waiting who knock.

        Raises:
            Unavailable: it does not tell, or not in time.
        """
        question = asyncio.create_task(self._question())
        self._questions.add(question)
        question.add_done_callback(self._forget)
        try:
            # `asyncio.timeout` would wait for the end as well: to close a connection whose other
            # side is silent takes two seconds more.
            pool = cast(QueuePool, self._database.engine.pool)
            url = self._database.engine.url
            limit = POOL_TIMEOUT if pool.checkedin() else connect_timeout(url)
            await asyncio.wait({question}, timeout=limit)
            if question.done():
                return question.result()
        finally:
            question.cancel()
        raise Unavailable("the database does not answer in time")

    def _forget(self, question: asyncio.Task[Any]) -> None:
        self._questions.discard(question)
        if not question.cancelled():
            question.exception()  # of one that nobody waits for any more: it is not worth a line

    async def _question(self) -> tuple[str | None, bool]:
        try:
            async with self._database._session(self._database.engine, gated=False) as session:
                found: str | None = await session.scalar(
                    text("SELECT version_num FROM alembic_version")
                )
                if self._preview is None or found is None:
                    return found, False
                finished = text("SELECT finished_at FROM sanitizations WHERE environment = :name")
                return found, await session.scalar(finished, {"name": self._preview}) is not None
        except DBAPIError as error:
            if _sqlstate(error) == UNDEFINED_TABLE:
                return None, False
            raise Unavailable("the database does not tell its revision") from error

    def _say(self, message: str, **details: Any) -> None:
        """Log a state when it begins, not at every request that meets it."""
        state = f"{message} {details}"
        if state != self._logged:
            self._logged = state
            (log.info if message == "schema ready" else log.warning)(message, **details)


def read() -> AbstractAsyncContextManager[AsyncSession]:
    """Give the current application's session for queries; see `Database.read`."""
    return current().read()


def write() -> AbstractAsyncContextManager[AsyncSession]:
    """Give the current application's session in a transaction; see `Database.write`."""
    return current().write()


def direct() -> AbstractAsyncContextManager[Connection]:
    """Give the current application's connection for statements; see `Database.direct`."""
    return current().direct()


def current() -> Database:
    """Return the current application's database."""
    # Imported here: Alembic needs this module without Quart, which costs the deploy hook 0.3 s.
    from quart import current_app

    database: Database = current_app.extensions["database"]
    return database


ADAPTER_ERROR = AsyncAdapt_asyncpg_dbapi.Error


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


def _engine(url: URL, pool_size: int, outage: Callable[..., Unavailable | None]) -> AsyncEngine:
    engine = create_async_engine(
        url,
        async_creator=partial(
            connect,
            url,
            name="quart-upsun",
            # For a server that stopped answering altogether; its own timeout comes first.
            command_timeout=STATEMENT_TIMEOUT + 2,
            settings={
                "statement_timeout": f"{STATEMENT_TIMEOUT}s",
                "lock_timeout": f"{LOCK_TIMEOUT}s",
                "idle_in_transaction_session_timeout": f"{STATEMENT_TIMEOUT}s",
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
        if _is_unusable(error):
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
        """Prepare a statement again whose plan a migration has made stale.

        A release being replaced lives on while the next one migrates. Outside a transaction
        nothing is lost by asking twice.
        """
        stale = context.dialect.loaded_dbapi.InvalidCachedStatementError
        try:
            cursor.execute(statement, parameters)
        except stale as error:
            driver_connection = context.root_connection.connection.dbapi_connection
            if not context.dialect.detect_autocommit_setting(driver_connection):
                raise
            context.handle_dbapi_exception(error)  # marks all cached plans of the engine as stale
            context.pre_exec()
            cursor.execute(statement, parameters)
        return True

    return engine


def _revisions(directory: Path) -> tuple[str, frozenset[str]]:
    """Return the newest revision this code ships, and all it knows."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(directory))
    head = scripts.get_current_head()
    if head is None:
        raise RuntimeError(f"{directory} holds no migration")
    return head, frozenset(script.revision for script in scripts.walk_revisions())


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state if isinstance(state, str) else None


def _is_unusable(error: BaseException) -> bool:
    """Tell whether the connection must not be used again after an error.

    A server that did not answer in time would keep the next one waiting, too. And a session stays
    read-only when the database no longer is.
    """
    return isinstance(error, OSError) or _sqlstate(error) == READ_ONLY


async def _roll_back(session: AsyncSession) -> None:
    """Roll back; close the connection if that fails, so that the first error is not hidden."""
    try:
        async with asyncio.timeout(ROLLBACK_TIMEOUT):
            await session.rollback()
    except (Unavailable, DBAPIError, TimeoutError):
        await session.invalidate()


async def _to_the_end(work: Awaitable[None]) -> None:
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
