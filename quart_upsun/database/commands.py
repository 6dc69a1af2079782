"""`quart database`: show or change which environment a database belongs to."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from quart_upsun.database.connection import unpooled_engine
from quart_upsun.database.errors import DatabaseUnavailableError, NoConnectionError
from quart_upsun.database.ownership import ForeignDatabaseError, Identity, claim_copy, read_owner
from quart_upsun.database.url import host_and_port, require_url

T = TypeVar("T")


def database_group(url: URL, identity: Identity) -> click.Group:
    """Return the `quart database` commands."""

    @click.group("database")
    def group() -> None:
        """Show or change which environment owns the database."""

    @group.command()
    def owner() -> None:
        """Show the owner and the environment of this process."""
        found = run_in_transaction(url, lambda connection: connection.run_sync(read_owner))
        click.echo(f"Database:     {f'{found.name} ({found.type})' if found else 'no owner'}")
        click.echo(f"This process: {identity.name or 'unnamed'} ({identity.type})")

    @group.command()
    @click.argument("owner")
    @click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
    def claim(owner: str, yes: bool) -> None:
        """Take over a copy of OWNER's database.

        OWNER is the name of the environment that the copy comes from. Run this after restoring a
        dump. It deletes the jobs in the copy, because running them would send their mail a second
        time. Never run it through a tunnel.
        """
        require_url(url)
        if not identity.name:
            raise click.ClickException("This environment has no name. Set DATABASE_ENVIRONMENT.")
        if not yes:
            click.confirm(
                f"Is {host_and_port(url)}/{url.database} a copy, and not the database in use by"
                f" {owner}?",
                abort=True,
            )
        try:
            jobs = run_in_transaction(
                url, lambda connection: claim_copy(connection, identity, owner)
            )
        except ForeignDatabaseError as error:
            raise click.ClickException(error.facts) from None
        click.echo(f"The database now belongs to {identity.name}. Jobs deleted: {jobs}.")

    return group


def run_in_transaction(url: URL, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Run `work` in a transaction."""

    async def inside() -> T:
        engine = unpooled_engine(url, name="quart database")
        async with engine.begin() as connection:
            return await work(connection)

    try:
        return asyncio.run(inside())
    except ForeignDatabaseError:
        raise
    except NoConnectionError as error:
        raise click.ClickException(
            f"Cannot connect to the database: {error}. Check DATABASE_URL."
        ) from None
    except (OSError, DBAPIError, DatabaseUnavailableError) as error:
        reason = type(getattr(error, "orig", None) or error).__name__
        raise click.ClickException(
            f"Cannot use the database ({reason}). If it is not migrated, run"
            " `alembic upgrade head`."
        ) from None
