"""The schema gate: no request reaches a schema that this code was not written for."""

import asyncio
import time
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

# How often the gate asks at most while it is closed, in seconds.
CHECK_INTERVAL_SECONDS = 0.25
# How long its answer is good for in a preview while it is open: a data sync or a restore can bring
# people back under our feet.
PREVIEW_CHECK_INTERVAL_SECONDS = 2.0
CHECK_TIMEOUT_SECONDS = 2.0  # seconds, over a connection that is open already


class SchemaGate:
    """Lets requests through to the database once its schema serves this code.

    A release starts before its deploy hook has migrated, so "behind" is a normal state at boot.
    A revision this code does not know comes from a newer release: migrations are written so that
    the release before can live with them, and it is served.

    Without migrations, as in an application that has none, only the database has to answer.

    In a preview, whose data are a copy of production's, it lets nobody through before they are
    sanitized.
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
        self._asked = self._checked = float("-inf")  # when the last question began, and ended
        self._verdict: DatabaseUnavailableError | None = None
        self._logged: str | None = None
        self._questions: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether a session may begin without asking."""
        return self._opened and (
            self._preview is None
            or time.monotonic() - self._checked < PREVIEW_CHECK_INTERVAL_SECONDS
        )

    def close(self) -> None:
        """Ask the database again before the next session."""
        self._opened = False
        self._checked = float("-inf")

    async def check(self) -> None:
        """Ask the database for its revision, at most once per interval for all who wait.

        Raises:
            DatabaseUnavailableError: the database does not answer.
            SchemaBehindError: it does, and must be migrated first.
            NotSanitizedError: it does, and tells about people.
        """
        came = time.monotonic()
        async with self._lock:
            rest = self._checked + CHECK_INTERVAL_SECONDS - time.monotonic()
            if (
                isinstance(self._verdict, SchemaBehindError | NotSanitizedError)
                and self._asked < came
            ):
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
            with suppress(DatabaseUnavailableError):
                await self.check()
                break
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)

    async def _ask(self) -> None:
        self._asked = time.monotonic()
        try:
            found, sanitized = await self._answer()
        except DatabaseUnavailableError as error:
            self._verdict = error
            self._log_state("database unavailable", reason=str(error), cause=repr(error.__cause__))
        else:
            if self.needed is not None and (
                found is None or (found in self._known and found != self.needed)
            ):
                self._verdict = SchemaBehindError(found, self.needed)
                self._log_state("schema behind", database=found, needed=self.needed)
            elif self._preview is not None and not sanitized:
                self._verdict = NotSanitizedError(self._preview)
                self._log_state(
                    "data not sanitized", environment=self._preview, fix="quart sanitize"
                )
            else:
                self._verdict = None
                if not self._opened:
                    # Plans prepared before the migration may no longer fit.
                    await self._database.engine.dispose()
                    self._log_state("schema ready", database=found, needed=self.needed)
        self._opened = self._verdict is None
        self._checked = time.monotonic()

    async def _answer(self) -> tuple[str | None, bool]:
        """Return the database's revision, and whether its data are sanitized for this preview.

        A host that takes the question and never says a word would keep all waiting who knock.

        Raises:
            DatabaseUnavailableError: it does not tell, or not in time.
        """
        question = asyncio.create_task(self._question())
        self._questions.add(question)
        question.add_done_callback(self._forget)
        try:
            # `asyncio.timeout` would wait for the end as well: to close a connection whose other
            # side is silent takes two seconds more.
            pool = cast(QueuePool, self._database.engine.pool)
            url = self._database.engine.url
            limit = CHECK_TIMEOUT_SECONDS if pool.checkedin() else connect_timeout(url)
            await asyncio.wait({question}, timeout=limit)
            if question.done():
                return question.result()
        finally:
            question.cancel()
        raise DatabaseUnavailableError("the database does not answer in time")

    def _forget(self, question: asyncio.Task[Any]) -> None:
        self._questions.discard(question)
        if not question.cancelled():
            question.exception()  # of one that nobody waits for any more: it is not worth a line

    async def _question(self) -> tuple[str | None, bool]:
        revision = "SELECT version_num FROM alembic_version" if self.needed else "SELECT NULL"
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
            raise DatabaseUnavailableError("the database does not tell its revision") from error

    def _log_state(self, message: str, **details: Any) -> None:
        """Log a state when it begins, not at every request that meets it."""
        state = f"{message} {details}"
        if state != self._logged:
            self._logged = state
            (log.info if message == "schema ready" else log.warning)(message, **details)


def _revisions(directory: Path) -> tuple[str, frozenset[str]]:
    """Return the newest revision this code ships, and all it knows."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(directory))
    head = scripts.get_current_head()
    if head is None:
        raise RuntimeError(f"{directory} holds no migration")
    return head, frozenset(script.revision for script in scripts.walk_revisions())
