"""The queue's own connection: listens, and comes back by itself when it was lost."""

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

RECONNECT_SECONDS = 1.0  # before the database is asked again
QUIET_SECONDS = 60.0  # without a failure, before its reason is logged again
# Also while it starts, ends or has no room for us.
CONNECTION_ERRORS = (
    *(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError),
    *(asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError),
    # After a failover the primary is another server, so the connection must be made again.
    asyncpg.ReadOnlySQLTransactionError,
)


class ReconnectingDriver(Driver):
    """PgQueuer's way to the database. A statement waits for as long as the database is away.

    One whose answer was lost is run again. That does no harm: what a claim has claimed that way is
    claimed again when its heartbeat is missed, and everything else can be said twice.

    Also while it is there, the schema gate must let through: a worker starts before its release's
    migrations, and in a preview nothing of production's is to be done.

    It claims nothing from a database that belongs to another environment, however it got here.
    """

    def __init__(
        self,
        database: Database,
        stopping: asyncio.Event,
        identity: Identity,
        reported: dict[str, float],
    ) -> None:
        """Connect when a statement is executed.

        Args:
            database: whose URL and schema gate are used.
            stopping: statements that cannot be executed raise once it is set.
            identity: the environment whose jobs may be claimed.
            reported: why statements have failed, and when that was last, by `time.monotonic()`.
                Drivers that succeed one another share it, and report an outage once.
        """
        self._database = database
        self._identity = identity
        self._refusal = ""
        self._stopping = stopping
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._listeners: list[tuple[str, NotifyCallback]] = []
        self._returning: asyncio.Task[None] | None = None
        self._reported = reported
        self._tasks = TaskManager()

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        async def owned(connection: Connection) -> list[Any]:
            if self._identity.has_own_database:
                rows: list[Any] = await connection.fetch(query, *args)
                return rows
            # Every claim of a job or a schedule is a fetch, and a restore can bring in another
            # environment's jobs at any time. The owner is read after the claim, so it is not older
            # than the jobs; if it is another one, the claim is rolled back.
            async with connection.transaction():
                rows = await connection.fetch(query, *args)
                await self._require_owner(connection)
            return rows

        return [dict(row) for row in await self._lasting(owned)]

    async def execute(self, query: str, *args: object) -> str:
        return await self._lasting(lambda connection: connection.execute(query, *args))

    async def notify(self, channel: str, payload: str) -> None:
        await self.execute("SELECT pg_notify($1, $2)", channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        async def listen(connection: Connection) -> None:
            await connection.add_listener(channel, _payload_callback(callback))

        await self._lasting(listen)
        self._listeners.append((channel, callback))

    async def close(self) -> None:
        if self._returning is not None:
            self._returning.cancel()
        await self._drop()

    async def _lasting(self, run: Callable[[Connection], Awaitable[T]]) -> T:
        while True:
            try:
                if not self._database.gate.is_open:
                    await self._database.gate.check()
                async with self._lock:
                    return await run(await self._connected())
            except ForeignDatabaseError as error:
                if self._stopping.is_set():
                    raise
                self._report(error)
            except DatabaseUnavailableError:  # the gate has said why
                if self._stopping.is_set():
                    raise
            except CONNECTION_ERRORS as error:
                self._report_loss(type(error).__name__)
                await self._drop()
                if self._stopping.is_set():
                    raise
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RECONNECT_SECONDS)

    async def _require_owner(self, connection: Connection) -> None:
        """Check that this environment may do the jobs in the database.

        Raises:
            ForeignDatabaseError: the database belongs to another environment.
        """
        row = await connection.fetchrow(ownership.SELECT_OWNER)
        ownership.require_owner(ownership.parse_owner(row), self._identity)
        self._refusal = ""

    def _report_loss(self, reason: str) -> None:
        """Log a reason when it begins, not at every attempt.

        A statement that succeeds in between does not end it: a read-only database goes on
        answering what only reads.
        """
        now = time.monotonic()
        last = self._reported.get(reason)
        self._reported[reason] = now
        if last is None or now - last > QUIET_SECONDS:
            log.warning("job queue connection lost", reason=reason)

    def _report(self, error: ForeignDatabaseError) -> None:
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
                self._database.engine.url,
                name="quart-upsun jobs",
                command_timeout=STATEMENT_TIMEOUT_SECONDS + 2,
            )
            connection.add_termination_listener(self._lost)
            try:
                for channel, callback in self._listeners:
                    await connection.add_listener(channel, _payload_callback(callback))
                    callback(change_notice())  # perhaps, while nobody listened
            except BaseException:  # a standby, for instance, does not take LISTEN
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    def _lost(self, connection: Any) -> None:
        """Listen again at once, and not only when there is something to say."""
        if connection is self._connection and not self._stopping.is_set():
            self._returning = asyncio.create_task(self._return())

    async def _return(self) -> None:
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
        """Nothing: whoever has made it closes it."""


def _payload_callback(callback: NotifyCallback) -> Callable[..., None]:
    def pass_on(connection: object, pid: object, channel: object, payload: object) -> None:
        if isinstance(payload, str):
            callback(payload)

    return pass_on
