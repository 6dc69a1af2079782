"""What the `quart` command can do beside serving: `quart --help` lists it."""

from quart import Quart

from app.preview.commands import database_group, sanitize_command
from app.settings import Settings
from app.user.commands import group as user


def init_app(app: Quart, settings: Settings) -> None:
    app.cli.add_command(sanitize_command(settings))
    app.cli.add_command(database_group(settings))
    app.cli.add_command(user)
