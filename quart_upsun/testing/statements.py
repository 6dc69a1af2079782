"""Record the SQL statements of an application, and open separate database connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from asyncpg.connection import LoggedQuery
from quart import Quart
from sqlalchemy import event

from quart_upsun.database import Connection


class Statements:
    """Record all SQL statements that the application sends through its pool, including BEGIN.

    Attributes:
        seen: the statements so far.
    """

    def __init__(self, app: Quart) -> None:
        self.seen: list[str] = []
        engine = app.extensions["quart_upsun"].database.engine.sync_engine
        # asyncpg's query logger misses prepared statements, which SQLAlchemy's event reports.
        event.listen(engine, "before_cursor_execute", self._prepared)
        event.listen(engine.pool, "checkout", self._listen)

    def _prepared(self, connection: object, cursor: object, statement: str, *rest: object) -> None:
        self.seen.append(statement)

    def _listen(self, connection: Any, record: object, proxy: object) -> None:
        connection.driver_connection.add_query_logger(self._sent)

    def _sent(self, record: LoggedQuery) -> None:
        self.seen.append(record.query)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """Open a database connection that does not belong to the application."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()
