"""How the application is loaded: by a `quart` command, by a `flask` command, or by a server."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def current_command() -> "click.Context | None":
    """Return the `quart` command that loads the application; None if it is a server.

    `quart run` is a server. All others, such as `quart --help`, must work without a database,
    assets and keys, so that they work in a build hook and in a fresh clone.
    """
    module = sys.modules.get("quart.cli")  # not imported here: migrations do without Quart
    context = _context("quart.cli")
    if module is None or context is None or context.command is module.run_command:
        return None
    return context


def reject_flask_command() -> None:
    """Exit if Flask's own command is loading the application, which it cannot run.

    Raises:
        SystemExit: the message names the command to use instead.
    """
    if _context("flask.cli") is not None:
        command = " ".join(["quart", *sys.argv[1:]])
        raise SystemExit(
            f"This is a Quart application, which `flask` cannot run. Use `{command}` instead."
        )


def _context(module: str) -> "click.Context | None":
    """Return the current context of Quart's or Flask's command line."""
    cli = sys.modules.get(module)
    if cli is None:
        return None
    import click

    context = click.get_current_context(silent=True)
    return context if context and context.find_object(cli.ScriptInfo) is not None else None
