"""`quart db`: migrations, with the commands and options of Flask-Migrate. Alembic does the work."""

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from sqlalchemy import URL

from quart_upsun.database.url import require_url
from quart_upsun.logging import configure_logging

SQL_OPTION = click.option("--sql", is_flag=True, help="Print the SQL instead of running it.")
TAG_OPTION = click.option("--tag", help="A value for env.py.")
VERBOSE_OPTION = click.option("-v", "--verbose", is_flag=True, help="Show more.")


def migrations_group(root: Path, url: URL) -> click.Group:
    """Return the `quart db` commands.

    Args:
        root: the directory with `alembic.ini`, which is also the working directory of Alembic.
        url: the database, from the settings.
    """

    @click.group("db")
    def group() -> None:
        """Migrate the database.

        The `alembic` command has more commands and options.
        """

    @group.command()
    @click.argument("revision", default="head")
    @SQL_OPTION
    @TAG_OPTION
    def upgrade(**options: Any) -> None:
        """Upgrade the database to REVISION; by default to the latest one."""
        _run(root, url, "upgrade", **options)

    @group.command(context_settings={"ignore_unknown_options": True})
    @click.argument("revision", default="-1")
    @SQL_OPTION
    @TAG_OPTION
    def downgrade(**options: Any) -> None:
        """Downgrade the database to REVISION; by default by one migration."""
        _run(root, url, "downgrade", **options)

    @group.command()
    @click.option("-m", "--message", help="What the migration does.")
    @SQL_OPTION
    @click.option("--head", default="head", help="The revision to build on.")
    @click.option("--splice", is_flag=True, help="Allow a revision that is not a head.")
    @click.option("--branch-label", help="A label for a new branch.")
    @click.option("--version-path", help="The directory to write to.")
    @click.option("--rev-id", help="The ID of the new revision.")
    def migrate(**options: Any) -> None:
        """Generate a migration from the changes of the models."""
        _run(root, url, "revision", autogenerate=True, **options)

    @group.command()
    @VERBOSE_OPTION
    def current(**options: Any) -> None:
        """Show the revision of the database."""
        _run(root, url, "current", **options)

    @group.command()
    @click.option("-r", "--rev-range", help="The revisions to list, as START:END.")
    @VERBOSE_OPTION
    @click.option("-i", "--indicate-current", is_flag=True, help="Mark the current revision.")
    def history(**options: Any) -> None:
        """List the migrations, the latest first."""
        _run(root, url, "history", **options)

    return group


def _run(root: Path, url: URL, name: str, **options: Any) -> None:
    """Run a command of Alembic.

    Raises:
        ClickException: Alembic reports an error.
        SystemExit: DATABASE_URL is not set, and the command needs it.
    """
    # Imported here: a server has these commands too, and must start fast.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if not options.get("sql") and (name != "history" or options["indicate_current"]):
        require_url(url)
    run: Callable[..., Any] = getattr(command, name)
    configure_logging("info", stream=sys.stderr, readable=True)
    # env.py finds the command in the same place as when Alembic's own program runs it.
    config = Config(root / "alembic.ini", cmd_opts=Namespace(cmd=(run, [], []), x=None))
    # A relative path would be relative to the working directory.
    location = config.get_main_option("script_location") or "alembic"
    config.set_main_option("script_location", str(root / location).replace("%", "%%"))
    try:
        run(config, **options)
    except CommandError as error:
        raise click.ClickException(f"{str(error).rstrip('.')}.") from None
