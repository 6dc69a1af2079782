"""Statements that most requests need: compiled once, and sent by asyncpg itself.

A session is simpler and does more; docs/decisions/fast-path.md says when this pays.
"""

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy import Dialect, Select, TextClause
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.compat.sqlalchemy import positional_parameters
from quart_upsun.database import Connection

Row = TypeVar("Row")
Source: TypeAlias = "Connection | AsyncSession"
DIALECT: Dialect = asyncpg.dialect()  # type: ignore[no-untyped-call]


class Statement(Generic[Row]):
    """A SELECT, and what its rows become.

    Args:
        select: with `bindparam()` for what is another value each time, or a `text()`. Values and
            columns are of types that asyncpg knows by itself, which JSON is not, and no `in_()` is
            in it.
        row: makes one of the values of the columns, such as `_make` of a named tuple.
    """

    def __init__(
        self, select: Select[Any] | TextClause, row: Callable[[Iterable[Any]], Row]
    ) -> None:
        self.select = select
        self._row = row
        compiled = select.compile(dialect=DIALECT)
        self._text = str(compiled)
        self._order, self._constants = positional_parameters(compiled)

    async def rows(self, source: Source, **values: Any) -> list[Row]:
        """Ask for the rows.

        Args:
            source: of `direct()`; or a session, where one is open anyway.
            values: by the names of the parameters; others may be among them.

        Raises:
            KeyError: a value is missing; of a session it is SQLAlchemy's StatementError.
        """
        if isinstance(source, AsyncSession):
            return [self._row(row) for row in await source.execute(self.select, values)]
        known = self._constants | values
        found = await source.fetch(self._text, *(known[name] for name in self._order))
        return [self._row(row.values()) for row in found]
