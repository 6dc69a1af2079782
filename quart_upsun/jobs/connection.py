"""The queue's own database connection, which listens for jobs and reconnects by itself."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import asyncpg

from quart_upsun.compat.pgqueuer import Driver, NotifyCallback, TaskManager, change_notice
from quart_upsun.database import (
    STATEMENT_TIMEOUT_SECONDS,
    Connection,
    Database,
    DatabaseUnavailableError,
    connect,
    ownership,
)
from quart_upsun.database.ownership import ForeignDatabaseError, Identity
from quart_upsun.logging import get_logger

log = get_logger(__name__)

T = TypeVar("T")

RECONNECT_SECONDS = 1.0  # between two attempts to connect
STOP_TIMEOUT_SECONDS = 2.0  # per statement, once the process stops
LOG_AGAIN_AFTER_SECONDS = 60.0  # after this time without failures, the same reason is logged again
# Includes a database that starts, stops or has too many connections.
CONNECTION_ERRORS = (
    *(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError),
    *(asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError),
    # After a failover another server is the primary, so the connection must be replaced.
    asyncpg.ReadOnlySQLTransactionError,
)


class ReconnectingDriver(Driver):
    """PgQueuer's database driver, which retries statements until the database is available.

    A statement whose result was lost is executed again. This is safe: jobs that the lost statement
    claimed are claimed again once their heartbeat is missed, and all other statements are
    idempotent.

    Statements also wait for the schema gate: a worker starts before the migrations of its release,
    and a preview must not run production's jobs.

    It claims no jobs from a database that belongs to another environment.
    """

    def __init__(
        self,
        database: Database,
        stopping: asyncio.Event,
        identity: Identity,
        reported: dict[str, float],
    ) -> None:
        """Initialize the driver; it connects on first use.

        Args:
            database: provides the URL and the schema gate.
            stopping: once set, statements raise instead of being retried.
            identity: the environment whose jobs may be claimed.
            reported: the time (`time.monotonic()`) of the last failure by reason. It is shared by
                successive drivers, so that an outage is logged once.
        """
        self._database = database
        self._identity = identity
        self._refusal = ""
        self._stopping = stopping
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._gave_up = False  # a statement failed while the process stops
        self._listeners: list[tuple[str, NotifyCallback]] = []
        self._reconnecting: asyncio.Task[None] | None = None
        self._reported = reported
        self._tasks = TaskManager()

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        async def fetch_if_owner(connection: Connection) -> list[Any]:
            if self._identity.has_own_database:
                rows: list[Any] = await connection.fetch(query, *args)
                return rows
            # Jobs and schedules are claimed with a fetch, and a restore can bring in another
            # environment's jobs at any time. The owner is read after the claim, so that it is not
            # older than the jobs. If it is another environment, the claim is rolled back.
            async with connection.transaction():
                rows = await connection.fetch(query, *args)
                await self._require_owner(connection)
            return rows

        return [dict(row) for row in await self._run(fetch_if_owner)]

    async def execute(self, query: str, *args: object) -> str:
        return await self._run(lambda connection: connection.execute(query, *args))

    async def notify(self, channel: str, payload: str) -> None:
        await self.execute("SELECT pg_notify($1, $2)", channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        async def listen(connection: Connection) -> None:
            await connection.add_listener(channel, _payload_callback(callback))

        await self._run(listen)
        self._listeners.append((channel, callback))

    def hurry(self) -> None:
        """Limit the time of the running statement, because the process stops."""
        if self._lock.locked():
            self._start_timer()

    async def close(self) -> None:
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        await self._drop()

    async def _run(self, statement: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a statement; retry it until it succeeds or the process stops."""
        while True:
            if self._gave_up:  # PgQueuer retries what it wants to write at the end
                raise TimeoutError
            try:
                if not self._database.gate.is_open:
                    await self._database.gate.check()
                async with self._lock:
                    if self._stopping.is_set():
                        self._start_timer()
                    try:
                        return await statement(await self._connected())
                    finally:
                        if self._timer is not None:
                            self._timer.cancel()
            except ForeignDatabaseError as error:
                if self._stopping.is_set():
                    raise
                self._report_refusal(error)
            except DatabaseUnavailableError:  # logged by the gate
                if self._stopping.is_set():
                    self._gave_up = True
                    raise
            except CONNECTION_ERRORS as error:
                self._report_loss(type(error).__name__)
                await self._drop()
                if self._stopping.is_set():
                    self._gave_up = True
                    raise
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RECONNECT_SECONDS)

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(STOP_TIMEOUT_SECONDS, self._abort)

    def _abort(self) -> None:
        """Make the running statement fail. Canceling it would wait for the server."""
        if self._connection is not None:
            self._connection.terminate()

    async def _require_owner(self, connection: Connection) -> None:
        """Check that this environment may run the jobs in the database.

        Raises:
            ForeignDatabaseError: the database belongs to another environment.
        """
        row = await connection.fetchrow(ownership.SELECT_OWNER)
        ownership.require_owner(ownership.parse_owner(row), self._identity)
        self._refusal = ""

    def _report_loss(self, reason: str) -> None:
        """Log an outage when it begins, not at every attempt.

        A statement that succeeds does not end the outage: a read-only database still answers
        queries.
        """
        now = time.monotonic()
        last = self._reported.get(reason)
        self._reported[reason] = now
        if last is None or now - last > LOG_AGAIN_AFTER_SECONDS:
            log.warning("job queue connection lost", reason=reason)

    def _report_refusal(self, error: ForeignDatabaseError) -> None:
        """Log a refusal when it begins, not at every attempt."""
        if self._refusal != str(error):
            self._refusal = str(error)
            log.warning(
                "jobs paused",
                reason=error.facts,
                remedy=error.remedy,
                owner=error.owner.name if error.owner else None,
                environment=error.identity.name,
            )

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            connection = await connect(
                self._database.direct_url,
                name="quart-upsun jobs",
                command_timeout=STATEMENT_TIMEOUT_SECONDS + 2,
            )
            connection.add_termination_listener(self._lost)
            try:
                for channel, callback in self._listeners:
                    await connection.add_listener(channel, _payload_callback(callback))
                    callback(change_notice())  # there may be jobs that were added meanwhile
            except BaseException:  # a standby, for instance, rejects LISTEN
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    def _lost(self, connection: Any) -> None:
        """Reconnect at once, to receive notifications again."""
        if connection is self._connection and not self._stopping.is_set():
            self._reconnecting = asyncio.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        with suppress(DatabaseUnavailableError, *CONNECTION_ERRORS):
            await self.execute("SELECT")

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*CONNECTION_ERRORS, asyncpg.PostgresError):
                await connection.close(timeout=1)

    @property
    def shutdown(self) -> asyncio.Event:
        return self._stopping

    @property
    def tm(self) -> TaskManager:
        return self._tasks

    async def __aenter__(self) -> "ReconnectingDriver":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: `Runner` closes the driver."""


def _payload_callback(callback: NotifyCallback) -> Callable[..., None]:
    def forward(connection: object, pid: object, channel: object, payload: object) -> None:
        if isinstance(payload, str):
            callback(payload)

    return forward
