"""Private APIs of asyncpg 0.32: prepared statements, and cancel requests."""

import asyncio
from typing import Any

import asyncpg

__all__ = ["OVERRIDDEN", "Connection"]

CANCEL_SECONDS = 2.0  # for a cancel request, before its connection is aborted

# Methods that `Connection` overrides, and their parameters.
OVERRIDDEN = {
    asyncpg.Connection._get_unique_id: ("self", "prefix"),
    asyncpg.Connection._get_statement: (
        *("self", "query", "timeout", "named", "use_cache", "ignore_custom_codec", "record_class"),
    ),
    asyncpg.Connection._drop_global_statement_cache: ("self",),
}


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """An asyncpg connection that finds out later whether it may name prepared statements.

    A connection pooler in transaction mode may execute a statement on another server connection
    than the one that prepared it. asyncpg's `statement_cache_size=0` avoids that, but must be known
    before the connection is open, and asks for the types of each statement in a second round trip,
    which costs a quarter of the requests per second.

    Attributes:
        names_statements: whether statements have names, and the server keeps their plans. Otherwise
            each execution also sends the text of the statement, in the same round trip. The types
            of its columns are cached, for the methods of asyncpg itself.
        is_pooled: whether the connection goes through a pooler.
    """

    names_statements = False
    is_pooled = False

    def _get_unique_id(self, prefix: str) -> Any:
        if prefix == "stmt" and not self.names_statements:
            return ""
        return super()._get_unique_id(prefix)

    async def _get_statement(self, query: str, *args: Any, **options: Any) -> Any:
        statement = await super()._get_statement(query, *args, **options)
        if not statement.name and statement.prepared:
            statement.mark_unprepared()  # as with `statement_cache_size=0`
        return statement

    def terminate(self) -> None:
        """Abort the connection, after the cancel request of a statement that timed out.

        Without the request, the statement would go on: a pooler passes on no `statement_timeout`,
        and the server does not notice that the client is gone.
        """
        if not self.is_pooled or not self._cancellations:
            super().terminate()
            return
        sent = asyncio.ensure_future(asyncio.wait({*self._cancellations}, timeout=CANCEL_SECONDS))
        sent.add_done_callback(lambda _: asyncpg.Connection.terminate(self))

    def limit_statement_cache(self, seconds: float) -> None:
        """Set how long the types of a statement are cached."""
        self._stmt_cache.set_max_lifetime(seconds)

    def forget_statements(self) -> None:
        """Ask for the types of all statements again."""
        self._drop_local_statement_cache()

    def _drop_global_statement_cache(self) -> None:
        """Forget all statements, because a migration has changed the types of their results.

        A pooler would use the same plan again for the same text, which fails again.
        """
        super()._drop_global_statement_cache()
        if self.is_pooled:
            self.names_statements = False
