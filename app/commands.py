"""`quart test` and `quart lint`, with the names of cookiecutter-flask. `make` does the work."""

import os
import shlex

import click
from quart import Quart
from quart.cli import ScriptInfo

from app.settings import ROOT


def init_app(app: Quart) -> None:
    """Add the commands to the application."""
    app.cli.add_command(test)
    app.cli.add_command(lint)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def test(arguments: tuple[str, ...]) -> None:
    """Test the application, as `make test` does.

    ARGUMENTS are passed to pytest, for instance `-k login`.
    """
    run_make("test", *arguments)


@click.command()
def lint() -> None:
    """Check style, types and migrations, as `make lint` does."""
    run_make("lint")


def run_make(target: str, *arguments: str) -> None:
    """Run make in place of this process.

    Raises:
        ClickException: make is not installed, or this is an Upsun environment.
    """
    app = click.get_current_context().ensure_object(ScriptInfo).load_app()
    if app.extensions["quart_upsun"].settings.platform is not None:
        raise click.ClickException("The packages for tests are not deployed. Use a local clone.")
    # make would expand a dollar sign.
    words = shlex.join(arguments).replace("$", "$$")
    command = ["make", "-C", str(ROOT), "--no-print-directory", target, f"ARGS={words}"]
    try:
        os.execvp(command[0], command)  # noqa: S606 no shell is needed
    except OSError as error:
        raise click.ClickException(f"Cannot run make: {error.strerror}.") from None
