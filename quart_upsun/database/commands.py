"""`quart database` says which environment a database belongs to."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from quart_upsun.database.connection import unpooled_engine
from quart_upsun.database.errors import DatabaseUnavailableError
from quart_upsun.database.ownership import ForeignDatabaseError, Identity, claim_copy, read_owner
from quart_upsun.database.url import host_and_port

T = TypeVar("T")


def database_group(url: URL, identity: Identity) -> click.Group:
    """Return the commands about the owner of the database."""

    @click.group("database")
    def group() -> None:
        """Show or change which environment the database belongs to."""

    @group.command()
    def owner() -> None:
        """Print the environment the database belongs to, and the environment of this process."""
        found = _run(url, lambda connection: connection.run_sync(read_owner))
        click.echo(f"Database:     {f'{found.name} ({found.type})' if found else 'no owner'}")
        click.echo(f"This process: {identity.name or 'unnamed'} ({identity.type})")

    @group.command()
    @click.argument("owner")
    @click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
    def claim(owner: str, yes: bool) -> None:
        """Take over a copy of the database of the environment OWNER.

        For a restored dump. The jobs that came with it are deleted: running them would send mail
        to people a second time. Never use it through a tunnel.
        """
        if not identity.name:
            raise click.ClickException("This environment has no name: set DATABASE_ENVIRONMENT.")
        if not yes:
            click.confirm(
                f"Is {host_and_port(url)}/{url.database} a copy, and not the database that {owner}"
                " itself uses?",
                abort=True,
            )
        try:
            jobs = _run(url, lambda connection: claim_copy(connection, identity, owner))
        except ForeignDatabaseError as error:
            raise click.ClickException(error.facts) from None
        click.echo(f"The database belongs to {identity.name} now. Jobs deleted: {jobs}.")

    return group


def _run(url: URL, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Run `work` in one transaction."""

    async def inside() -> T:
        engine = unpooled_engine(url, name="quart database")
        async with engine.begin() as connection:
            return await work(connection)

    try:
        return asyncio.run(inside())
    except ForeignDatabaseError:
        raise
    except (OSError, DBAPIError, DatabaseUnavailableError) as error:
        reason = type(getattr(error, "orig", None) or error).__name__
        raise click.ClickException(
            f"The database cannot be used ({reason}). If it is not migrated, run"
            " `alembic upgrade head` first."
        ) from None
