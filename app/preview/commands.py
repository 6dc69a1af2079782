"""`quart sanitize` anonymizes a preview's data; `quart database` says whose a database is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import Unavailable, unpooled_engine
from app.database_url import place
from app.ownership import ForeignDatabaseError, claim_copy, read_owner
from app.settings import Settings

T = TypeVar("T")


def sanitize_command(settings: Settings) -> click.Command:
    """Return the command; without Quart's `with_appcontext`, which would run it inside a loop."""

    @click.command("sanitize")
    def sanitize() -> None:
        """Replace names and addresses in this preview's data, and end its logins.

        A preview begins with a copy of production's data. What each column's model says in
        `__sanitize__` is done: users get made-up names and addresses and no password fits any
        more, the audit trail, the jobs and the kept mails are emptied. Until it is through, the
        application serves no page that needs the database.

        Once for each environment: a second run says so and ends, and one that was killed goes on
        where it was. Refused in production and off Upsun.
        """
        platform = settings.platform
        if platform is None:
            raise click.ClickException(
                "This is no Upsun environment, and its data stay as they are."
            )
        if not platform.is_preview:
            raise click.ClickException(
                f"The type of this environment is {platform.type}, and only the data of a preview"
                " (staging or development) are sanitized."
            )
        from app.preview.sanitize import SanitizeError
        from app.preview.sanitize import sanitize as work

        try:
            asyncio.run(work(settings.database_url, settings.identity, click.echo))
        except SanitizeError as error:
            raise click.ClickException(str(error)) from None

    return sanitize


def database_group(settings: Settings) -> click.Group:
    """Return the commands about the owner of the database."""
    identity = settings.identity

    @click.group("database")
    def group() -> None:
        """Show or change which environment the database belongs to."""

    @group.command()
    def owner() -> None:
        """Print the environment the database belongs to, and the environment of this process."""
        found = _run(settings, lambda connection: connection.run_sync(read_owner))
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
        url = settings.database_url
        if not yes:
            click.confirm(
                f"Is {place(url)}/{url.database} a copy, and not the database that {owner} itself"
                " uses?",
                abort=True,
            )
        try:
            jobs = _run(settings, lambda connection: claim_copy(connection, identity, owner))
        except ForeignDatabaseError as error:
            raise click.ClickException(error.facts) from None
        click.echo(f"The database belongs to {identity.name} now. Jobs deleted: {jobs}.")

    return group


def _run(settings: Settings, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Run `work` in one transaction."""

    async def inside() -> T:
        engine = unpooled_engine(settings.database_url, name="quart database")
        async with engine.begin() as connection:
            return await work(connection)

    try:
        return asyncio.run(inside())
    except ForeignDatabaseError:
        raise
    except (OSError, DBAPIError, Unavailable) as error:
        reason = type(getattr(error, "orig", None) or error).__name__
        raise click.ClickException(
            f"The database cannot be used ({reason}). If it is not migrated, run"
            " `alembic upgrade head` first."
        ) from None
