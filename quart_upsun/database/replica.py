"""A read replica: which reads it may serve, and what happens to those that fail there.

The replica is a standby of PostgreSQL's streaming replication, which replays the log of the primary
a little later. docs/read-replica.md describes the whole.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, NamedTuple
from weakref import WeakSet

import asyncpg
from sqlalchemy import URL, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from quart_upsun.compat.sqlalchemy import await_only
from quart_upsun.database.connection import (
    Connection,
    PooledConnection,
    connect,
    pooled_engine,
)
from quart_upsun.database.errors import (
    QUERY_CANCELED,
    DatabaseUnavailableError,
    NoConnectionError,
    sqlstate,
)
from quart_upsun.database.log_position import POSITION_SECONDS, SELECT_POSITION, current_reads
from quart_upsun.database.usage import QueryObserver
from quart_upsun.logging import get_logger

log = get_logger(__name__)

POLL_SECONDS = 1.0  # between two checks of the replica
WAIT_POLL_SECONDS = 0.005  # the same, while reads wait for it
POLL_TIMEOUT_SECONDS = 2.0
CONNECT_TIMEOUT_SECONDS = 3.0
# A read waits this long for the replica to replay a recent change, then goes to the primary.
WAIT_SECONDS = 0.1
# A replica that is further behind is not used until it has caught up to half of that.
MAX_LAG_SECONDS = 5.0
# How long the result of a check is valid: longer than the time until the next one ends.
VALID_SECONDS = POLL_SECONDS + 2 * POLL_TIMEOUT_SECONDS + 1
# One more second, because the age of a position is a whole number of seconds.
assert POSITION_SECONDS > MAX_LAG_SECONDS + VALID_SECONDS + 1  # noqa: S101

SELECT_IDENTITY = "SELECT system_identifier, current_database() FROM pg_control_system()"
SELECT_REPLAYED = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()"

Primary = Callable[[], AbstractAsyncContextManager[Connection]]


class ReplicaError(DatabaseUnavailableError):
    """The replica cannot run a statement. The primary can."""


class Sample(NamedTuple):
    """The position of the primary at a time: all commits before that time are before it."""

    time: float
    position: int


class ReplicaConnection(PooledConnection):
    """A connection to the replica, whose queries run on the primary if they fail.

    Attributes:
        replayed: how far the replica has replayed the log, when this connection last asked. A
            server that restarts may be further back than before, but closes its connections.
        primary: borrows a connection to the primary.
    """

    replayed: int = 0
    primary: Primary

    async def fetch(self, *arguments: Any, **options: Any) -> Any:
        return await self._run("fetch", arguments, options)

    async def fetchrow(self, *arguments: Any, **options: Any) -> Any:
        return await self._run("fetchrow", arguments, options)

    async def fetchval(self, *arguments: Any, **options: Any) -> Any:
        return await self._run("fetchval", arguments, options)

    async def _run(self, name: str, arguments: Any, options: Any) -> Any:
        try:
            return await getattr(PooledConnection, name)(self, *arguments, **options)
        except Exception as error:
            if sqlstate(error) == QUERY_CANCELED:  # would take as long on the primary
                raise
        async with self.primary() as connection:
            return await getattr(connection, name)(*arguments, **options)

    async def has_replayed(self, position: int) -> bool:
        """Tell whether the replica has replayed the log up to a position."""
        if self.replayed < position:
            is_replica, replayed = await PooledConnection.fetchrow(self, SELECT_REPLAYED)
            self.replayed = replayed if is_replica else 0
        return self.replayed >= position


class ReplicaSession(Session):
    """A session that moves to the primary with the first statement that fails on the replica.

    Each statement of `read()` is a transaction of its own, so the failed one can run again, and
    loaded objects stay valid. Statements of `AsyncSession.connection()` and rows of `stream()`
    after the first are not repeated; they raise `ReplicaError`.

    Args:
        bind: the replica.
        move: waits for a connection slot of the primary, and returns its engine.
    """

    def __init__(self, bind: Engine, *, move: Callable[[], Engine], **options: Any) -> None:
        super().__init__(bind, **options)
        self._move = move
        self._primary: Engine | None = None

    def get_bind(self, *arguments: Any, **options: Any) -> Any:
        return self._primary or super().get_bind(*arguments, **options)

    def execute(self, *arguments: Any, **options: Any) -> Any:
        return self._run(super().execute, arguments, options)

    def scalar(self, *arguments: Any, **options: Any) -> Any:
        return self._run(super().scalar, arguments, options)

    def scalars(self, *arguments: Any, **options: Any) -> Any:
        return self._run(super().scalars, arguments, options)

    def _run(self, method: Callable[..., Any], arguments: Any, options: Any) -> Any:
        if self._primary is None:
            with suppress(ReplicaError, NoConnectionError):
                return method(*arguments, **options)
            self._primary = self._move()
        return method(*arguments, **options)


class Replica:
    """The read replica of a process: its connection pool, and whether it may be read from.

    `watch()` checks the replica every second. It is used if

    - it is a standby of the primary, and was not promoted: then it has changes of its own;
    - it is at most `MAX_LAG_SECONDS` behind. The lag is measured by comparing its position with
      earlier positions of the primary, so it needs no clock of theirs;
    - it has replayed what the primary had when the schema gate last opened, so the schema fits, and
      in a preview the data is sanitized.

    Args:
        url: the replica.
        pool_size: the maximum number of pooled connections; `watch()` needs one more.
        primary: borrows a connection to the primary.
        observers: called after each statement.

    Attributes:
        engine: the engine with the pool.
        served_count: the number of reads that began on the replica.
        refused_count: the number of reads that began on the primary, though they did not have to.
        lag_seconds: how far the replica is behind, at most; None while that is unknown.
    """

    def __init__(
        self, url: URL, pool_size: int, primary: Primary, observers: Sequence[QueryObserver]
    ) -> None:
        self._url = url
        self._primary = primary
        self.engine = self._create_engine(pool_size, observers)
        self.served_count = self.refused_count = 0
        self.lag_seconds: float | None = None
        self._connections: WeakSet[ReplicaConnection] = WeakSet()
        self._monitor: PooledConnection | None = None
        self._identity: tuple[Any, ...] = ()
        self._samples: deque[Sample] = deque(maxlen=60)
        self._since = time.monotonic()  # the last `reset()`
        self._floor = 0  # the first sample since the schema gate opened
        self._replayed = 0
        self._valid_until = float("-inf")
        self._state: str | None = None  # as logged: "ready", or why it is unavailable
        self._wake = asyncio.Event()
        self._polled = asyncio.Event()
        self._waiting = 0
        self._no_wait_until = float("-inf")

    @property
    def is_usable(self) -> bool:
        """Whether reads that need no recent position may begin on the replica."""
        return time.monotonic() < self._valid_until

    async def accepts_read(self) -> bool:
        """Tell whether a read of this request may begin on the replica.

        If it has not replayed what the client has written, wait for `WAIT_SECONDS`.
        """
        reads = current_reads.get()
        if reads is None or reads.has_written:
            return False
        accepted = self.is_usable and (
            self._replayed >= reads.position or await self._wait_for(reads.position)
        )
        if accepted:
            self.served_count += 1
        else:
            self.refused_count += 1
        return accepted

    def reset(self) -> None:
        """Use the replica only once it has replayed what the primary has now."""
        self._valid_until = float("-inf")
        self._samples.clear()
        self._floor = 0
        self._since = time.monotonic()
        self._wake.set()

    async def watch(self) -> None:
        """Check the replica until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._poll()
                except Exception:
                    log.exception("checking the replica failed")
                self._polled.set()
                self._polled = asyncio.Event()
                if self._waiting:
                    await asyncio.sleep(WAIT_POLL_SECONDS)
                    continue
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
        finally:
            self._valid_until = float("-inf")
            self._drop_monitor()

    async def close(self) -> None:
        await self.engine.dispose()

    async def _wait_for(self, position: int) -> bool:
        """Wait until the replica has replayed a position; return whether it has.

        After a read has waited in vain, others do not wait for a while: the replica is behind.
        """
        if time.monotonic() < self._no_wait_until:
            return False
        self._waiting += 1
        self._wake.set()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while self._replayed < position:
                    await self._polled.wait()
        except TimeoutError:
            self._no_wait_until = time.monotonic() + POLL_SECONDS
            return False
        finally:
            self._waiting -= 1
        return self.is_usable

    async def _poll(self) -> None:
        started, since = time.monotonic(), self._since
        try:
            if not self._samples or started - self._samples[-1].time >= POLL_SECONDS:
                await self._sample_primary()
        except (DatabaseUnavailableError, asyncpg.PostgresError, OSError):
            # Nobody can tell how far the replica is behind. The schema gate logs the outage.
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS + POLL_TIMEOUT_SECONDS):
                reason = await self._check_replica()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._drop_monitor()
            self._set_state(str(error) or type(error).__name__)
            # Statements that wait for a silent server fail now, and run on the primary. The pool
            # replaces the connections; a new pool would lose those that are in use.
            for connection in [*self._connections]:
                connection.terminate()
            return
        if since != self._since:  # `reset()` was called meanwhile
            return
        reason = reason or self._compare(started)
        if reason is not None:
            self._set_state(reason)
        elif self.lag_seconds is not None and self._replayed >= self._floor:
            self._set_state("ready")
            self._valid_until = started + VALID_SECONDS

    async def _sample_primary(self) -> None:
        since = self._since
        async with asyncio.timeout(POLL_TIMEOUT_SECONDS), self._primary() as connection:
            before = time.monotonic()
            position: int = await connection.fetchval(SELECT_POSITION)
            if self._monitor is None:
                self._identity = tuple(await connection.fetchrow(SELECT_IDENTITY))
        if since == self._since:
            self._samples.append(Sample(before, position))
            self._floor = self._floor or position

    async def _check_replica(self) -> str | None:
        """Ask the replica how far it is; return why it must not be used, or None."""
        monitor = self._monitor
        if monitor is None:
            monitor = await connect(
                self._url,
                name="quart-upsun replica",
                timeout=CONNECT_TIMEOUT_SECONDS,
                command_timeout=POLL_TIMEOUT_SECONDS,
            )
            monitor.add_termination_listener(self._on_termination)
            self._monitor = monitor
            if tuple(await monitor.fetchrow(SELECT_IDENTITY)) != self._identity:
                self._drop_monitor()
                return "it is a replica of another database"
        is_replica, replayed = await monitor.fetchrow(SELECT_REPLAYED)
        if not is_replica:
            return "it is not a replica, or was promoted"
        self._replayed = replayed
        return None

    def _compare(self, now: float) -> str | None:
        """Measure how far the replica is behind; return a reason if that is too far."""
        samples = self._samples
        while len(samples) > 1 and samples[1].position <= self._replayed:
            samples.popleft()
        is_known = samples[0].position <= self._replayed
        self.lag_seconds = max(0.0, now - samples[0].time) if is_known else None
        behind = now - self._since if self.lag_seconds is None else self.lag_seconds
        limit = MAX_LAG_SECONDS if self._state == "ready" else MAX_LAG_SECONDS / 2
        return "it is too far behind" if behind > limit else None

    def _set_state(self, state: str) -> None:
        """Log a change of the state, and let no more reads begin unless it is `ready`."""
        if state != "ready":
            self._valid_until = float("-inf")
        if (self._state == "ready") != (state == "ready") or self._state is None:
            if state == "ready":
                log.info("replica ready")
            else:
                log.warning("replica unavailable", reason=state)
        self._state = state

    def _drop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.remove_termination_listener(self._on_termination)
            self._monitor.terminate()
            self._monitor = None

    def _on_termination(self, connection: object) -> None:
        self._wake.set()

    def _create_engine(self, pool_size: int, observers: Sequence[QueryObserver]) -> AsyncEngine:
        engine = pooled_engine(
            self._url,
            pool_size,
            _failure,
            observers,
            name="quart-upsun replica",
            timeout=CONNECT_TIMEOUT_SECONDS,
            kind=ReplicaConnection,
        )

        @event.listens_for(engine.sync_engine, "connect")
        def connected(connection: Any, record: Any) -> None:
            driver_connection: ReplicaConnection = connection.driver_connection
            driver_connection.primary = self._primary
            self._connections.add(driver_connection)

        @event.listens_for(engine.sync_engine, "checkout")
        def require_position(connection: Any, record: Any, proxy: Any) -> None:
            reads = current_reads.get()
            needed = max(self._floor, reads.position if reads else 0)
            driver_connection: ReplicaConnection = connection.driver_connection
            if driver_connection.replayed < needed and not await_only(
                driver_connection.has_replayed(needed)
            ):
                raise ReplicaError("the replica has restarted, and is behind")

        return engine


def _failure(error: BaseException, *, is_lost: bool) -> DatabaseUnavailableError | None:
    """Return the error that replaces an error of a statement on the replica."""
    if not isinstance(error, Exception):
        return None
    if sqlstate(error) == QUERY_CANCELED:  # would take as long on the primary
        return DatabaseUnavailableError("the database canceled a statement")
    return ReplicaError(f"the replica failed: {error}")
