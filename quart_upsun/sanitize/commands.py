"""`quart sanitize`: anonymize a preview's data."""

import asyncio

import click

from quart_upsun.database.base import load_models
from quart_upsun.settings import Settings


def sanitize_command(settings: Settings, package: str) -> click.Command:
    """Return the `quart sanitize` command.

    It does not use Quart's `with_appcontext`, which would run it inside an event loop.

    Args:
        settings: the application's settings.
        package: the application's package, whose models declare `__sanitize__`.
    """

    @click.command("sanitize")
    def sanitize() -> None:
        """Anonymize this preview's data.

        A preview starts with a copy of production's data. This command replaces user names, email
        addresses and password hashes, and deletes the audit trail, the jobs and the kept mails, as
        each model declares in `__sanitize__`. Until it has finished, the application does not serve
        pages that need the database.

        It runs once per environment. A second run does nothing, and a run that was interrupted is
        resumed. It refuses to run in production and off Upsun.
        """
        platform = settings.platform
        if platform is None:
            raise click.ClickException("This is not an Upsun environment. Nothing was sanitized.")
        if not platform.is_preview:
            raise click.ClickException(
                f"The type of this environment is {platform.type}. Only previews (staging or"
                " development) can be sanitized. Nothing was sanitized."
            )
        from quart_upsun.sanitize.sanitizer import SanitizeError
        from quart_upsun.sanitize.sanitizer import sanitize as work

        load_models(package)
        try:
            asyncio.run(work(settings.direct_url, settings.identity, click.echo))
        except SanitizeError as error:
            raise click.ClickException(str(error)) from None

    return sanitize
