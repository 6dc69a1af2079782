"""The schema gate, which blocks requests until the schema fits this code."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from quart_upsun.database.connection import connect_timeout
from quart_upsun.database.errors import (
    UNDEFINED_TABLE,
    DatabaseUnavailableError,
    NotSanitizedError,
    SchemaBehindError,
    sqlstate,
)
from quart_upsun.logging import get_logger

if TYPE_CHECKING:
    from quart_upsun.database.session import Database

log = get_logger(__name__)

CHECK_INTERVAL_SECONDS = 0.25  # the minimum between two checks while the gate is closed
# How long an open gate of a preview is valid. A data sync or a restore can bring back personal data
# at any time.
PREVIEW_CHECK_INTERVAL_SECONDS = 2.0
CHECK_TIMEOUT_SECONDS = 2.0  # over a connection that is already open


class SchemaGate:
    """Blocks requests until the schema of the database fits this code.

    A release starts before its deploy hook migrates, so "behind" is a normal state at boot. An
    unknown revision comes from a newer release. It is accepted, because migrations must be
    compatible with the previous release.

    Without migrations, as in an application that has none, only the database has to answer.

    In a preview, whose data is a copy of production's, it also blocks until the data is sanitized.
    """

    def __init__(
        self, database: "Database", *, migrations: Path | None = None, preview: str | None = None
    ) -> None:
        self._database = database
        self._preview = preview
        self.needed: str | None = None
        self._known: frozenset[str] = frozenset()
        if migrations is not None:
            self.needed, self._known = _revisions(migrations)
        self._opened = False
        self._lock = asyncio.Lock()
        self._started = self._checked = float("-inf")  # start and end of the last check
        self._error: DatabaseUnavailableError | None = None
        self._logged: str | None = None
        self._queries: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether a session may begin without a check."""
        return self._opened and (
            self._preview is None
            or time.monotonic() - self._checked < PREVIEW_CHECK_INTERVAL_SECONDS
        )

    def close(self) -> None:
        """Close the gate: the next session begins with a check."""
        self._opened = False
        self._checked = float("-inf")

    async def check(self) -> None:
        """Check the revision of the database, at most once per interval for all callers.

        Raises:
            DatabaseUnavailableError: the database does not answer.
            SchemaBehindError: the database must be migrated first.
            NotSanitizedError: the database holds personal data of production.
        """
        called = time.monotonic()
        async with self._lock:
            rest = self._checked + CHECK_INTERVAL_SECONDS - time.monotonic()
            if (
                isinstance(self._error, SchemaBehindError | NotSanitizedError)
                and self._started < called
            ):
                # A caller that comes after the deploy hook must not get the state from before it.
                await asyncio.sleep(rest)
                await self._run_check()
            elif rest < 0:
                await self._run_check()
        if self._error is not None:
            # The error is raised many times, and each raise would lengthen its traceback.
            raise self._error.with_traceback(None)

    async def wait(self) -> None:
        """Check until the gate is open.

        A server does this from its start, so that it has a connection before the requests that the
        deploy has held arrive all at once.
        """
        while not self.is_open:
            with suppress(DatabaseUnavailableError):
                await self.check()
                break
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)

    async def _run_check(self) -> None:
        self._started = time.monotonic()
        try:
            found, sanitized = await self._fetch_state()
        except DatabaseUnavailableError as error:
            self._error = error
            self._log_change(
                log.warning, "database unavailable", reason=str(error), cause=repr(error.__cause__)
            )
        else:
            if self.needed is not None and (
                found is None or (found in self._known and found != self.needed)
            ):
                self._error = SchemaBehindError(found, self.needed)
                self._log_change(
                    log.warning, "schema behind", revision=found, required_revision=self.needed
                )
            elif self._preview is not None and not sanitized:
                self._error = NotSanitizedError(self._preview)
                self._log_change(
                    log.warning,
                    "data not sanitized",
                    environment=self._preview,
                    remedy="quart sanitize",
                )
            else:
                self._error = None
                if not self._opened:
                    # Drops the plans that were prepared before the migration.
                    await self._database.engine.dispose()
                    if self._database.replica is not None:
                        self._database.replica.reset()
                    self._log_change(
                        log.info, "schema ready", revision=found, required_revision=self.needed
                    )
        self._opened = self._error is None
        self._checked = time.monotonic()

    async def _fetch_state(self) -> tuple[str | None, bool]:
        """Return the revision of the database and whether its data is sanitized for this preview.

        Limits the time, because a host that accepts the query and never answers would block all
        callers.

        Raises:
            DatabaseUnavailableError: the query failed or timed out.
        """
        query = asyncio.create_task(self._query_state())
        self._queries.add(query)
        query.add_done_callback(self._discard)
        try:
            # `asyncio.timeout` would also wait for the cancellation, and closing a connection to a
            # silent host takes two more seconds.
            pool = cast(QueuePool, self._database.engine.pool)
            url = self._database.engine.url
            limit = CHECK_TIMEOUT_SECONDS if pool.checkedin() else connect_timeout(url)
            await asyncio.wait({query}, timeout=limit)
            if query.done():
                return query.result()
        finally:
            query.cancel()
        raise DatabaseUnavailableError("the database does not answer in time")

    def _discard(self, query: asyncio.Task[Any]) -> None:
        self._queries.discard(query)
        if not query.cancelled():
            query.exception()  # retrieved, so that asyncio does not log it

    async def _query_state(self) -> tuple[str | None, bool]:
        # Without the toolkit's table, the revision is that of another application.
        revision = (
            "SELECT version_num FROM alembic_version LEFT JOIN database_owner ON true"
            if self.needed
            else "SELECT NULL"
        )
        try:
            async with self._database._session(self._database.engine, gated=False) as session:
                found: str | None = await session.scalar(text(revision))
                if self._preview is None or found is None:
                    return found, False
                finished = text("SELECT finished_at FROM sanitizations WHERE environment = :name")
                return found, await session.scalar(finished, {"name": self._preview}) is not None
        except DBAPIError as error:
            if sqlstate(error) == UNDEFINED_TABLE:
                return None, False
            raise DatabaseUnavailableError("the revision of the database cannot be read") from error

    def _log_change(self, write: Callable[..., Any], event: str, **details: Any) -> None:
        """Log a state when it begins, not for every request that finds it unchanged."""
        state = f"{event} {details}"
        if state != self._logged:
            self._logged = state
            write(event, **details)


def _revisions(directory: Path) -> tuple[str, frozenset[str]]:
    """Return the head revision of the migrations and all their revisions."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(directory))
    head = scripts.get_current_head()
    if head is None:
        raise RuntimeError(f"{directory} contains no migrations")
    return head, frozenset(script.revision for script in scripts.walk_revisions())
