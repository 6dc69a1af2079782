"""Temporary databases for tests."""

import secrets

import asyncpg
from sqlalchemy import make_url


async def create_database(server_url: str, template: str) -> str:
    """Create a database from a template and return its URL, as a platform would provide it."""
    name = f"test_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(
            f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY'
        )
    finally:
        await connection.close()
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


async def drop_database(server_url: str, url: str) -> None:
    """Drop a database and close all connections to it."""
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')
    finally:
        await connection.close()


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
