"""Hot statements, which most requests run: compiled once and executed by asyncpg directly.

A session is simpler and does more. docs/decisions/fast-path.md says when a `Statement` pays off.
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
    """A compiled SELECT, with a type for its rows.

    Args:
        select: the query, with a `bindparam()` for each variable value, or a `text()`. It must
            not contain `in_()`, and asyncpg must convert its types without help, which excludes
            JSON.
        row: makes a row from the column values, for instance `_make` of a named tuple.
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
        """Execute the query and return its rows.

        Args:
            source: a connection from `direct()`, or an open session.
            values: the parameters by name; extra values are ignored.

        Raises:
            KeyError: a parameter is missing. With a session, it is SQLAlchemy's StatementError.
        """
        if isinstance(source, AsyncSession):
            return [self._row(row) for row in await source.execute(self.select, values)]
        parameters = self._constants | values
        rows = await source.fetch(self._text, *(parameters[name] for name in self._order))
        return [self._row(row.values()) for row in rows]

    async def first(self, source: Source, **values: Any) -> Row | None:
        """Return the first row, or None if there is none; otherwise as `rows()`."""
        found = await self.rows(source, **values)
        return found[0] if found else None


def only_column(values: Iterable[Any]) -> Any:
    """Return the value of a row with one column: a `row` for `Statement`."""
    (value,) = values
    return value
