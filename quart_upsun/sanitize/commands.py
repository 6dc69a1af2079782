"""`quart sanitize` anonymizes a preview's data."""

import asyncio

import click

from quart_upsun.database.base import load_models
from quart_upsun.settings import Settings


def sanitize_command(settings: Settings, package: str) -> click.Command:
    """Return the command; without Quart's `with_appcontext`, which would run it inside a loop.

    Args:
        settings: of the application.
        package: the application's, whose models say what happens to each column.
    """

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
        from quart_upsun.sanitize.sanitizer import SanitizeError
        from quart_upsun.sanitize.sanitizer import sanitize as work

        load_models(package)
        try:
            asyncio.run(work(settings.database_url, settings.identity, click.echo))
        except SanitizeError as error:
            raise click.ClickException(str(error)) from None

    return sanitize
