"""`quart sanitize`: makes a preview's copy of production's data harmless."""

import asyncio

import click

from app.settings import Settings


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
            asyncio.run(work(settings.database_url, platform.name, click.echo))
        except SanitizeError as error:
            raise click.ClickException(str(error)) from None

    return sanitize
