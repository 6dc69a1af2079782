"""Temporary databases for tests."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import make_url


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Open a connection of asyncpg."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def create_database(server_url: str, template: str, connection: Any = None) -> str:
    """Create a database from a template and return its URL, as a platform would provide it.

    Args:
        server_url: the maintenance database of the server.
        template: the name of the template.
        connection: an open connection to the maintenance database, which is faster than a new one.
    """
    if connection is None:
        async with connected(server_url) as connection:
            return await create_database(server_url, template, connection)
    name = f"test_{secrets.token_hex(6)}"
    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def drop_database(server_url: str, url: str, connection: Any = None) -> None:
    """Drop a database and close all connections to it. The arguments are as above."""
    if connection is None:
        async with connected(server_url) as connection:
            await drop_database(server_url, url, connection)
            return
    await connection.execute(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')


async def set_read_only(url: str, state: str) -> None:
    """Make a database read-only or writable, and terminate all its connections as in a failover.

    Args:
        url: the database.
        state: `on` for read-only, `off` for writable.
    """
    connection = await asyncpg.connect(url)
    name = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {state}")
    await connection.execute(
        # With a timeout, so that it waits until the connections are closed.
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()


async def writable_again(url: str) -> None:
    """Make a database writable for new connections, while those in the pool stay read-only."""
    connection = await asyncpg.connect(url)
    name = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await connection.close()
