"""The toolkit's `quart` commands."""

from collections.abc import Callable
from functools import partial
from typing import Any

import click
import quart.cli
from quart import Quart

from quart_upsun.command_line import current_command
from quart_upsun.commands.inspect import inspect_command
from quart_upsun.commands.migrations import migrations_group
from quart_upsun.settings import Settings

__all__ = ["init_app"]


def init_app(app: Quart, settings: Settings) -> None:
    """Add the commands to an application.

    `quart db` is added if there is an `alembic.ini`.
    """
    app.cli.add_command(inspect_command(app))
    if (settings.root / "alembic.ini").is_file():
        app.cli.add_command(migrations_group(settings.root, settings.direct_url))
    context = current_command()
    if context is not None:
        if context.command is quart.cli.routes_command:
            _replace_running_command(app, context, _list_routes)
        elif context.command is quart.cli.shell_command:
            _replace_running_command(app, context, _run_shell)


def _replace_running_command(
    app: Quart, context: click.Context, replacement: Callable[..., None]
) -> None:
    """Run a replacement instead of one of Quart's own commands.

    Quart's own commands take precedence over those of an application, and load the application
    while they run. Then they call `context.invoke` in an event loop. The replacement runs when the
    command has ended, so that it can have an event loop of its own.

    Args:
        app: the application, which need not be complete yet.
        context: the context of the command that loads it.
        replacement: called with the application and the command's options.
    """

    def invoke(*_: object, **__: object) -> None:
        context.call_on_close(partial(replacement, app, **context.params))

    context.invoke = invoke  # type: ignore[method-assign, assignment]


def _list_routes(app: Quart, **options: Any) -> None:
    # Imported here, as below: a server must start fast.
    from quart_upsun.commands.routes import list_routes

    list_routes(app, **options)


def _run_shell(app: Quart) -> None:
    from quart_upsun.commands.shell import run_shell

    run_shell(app)
