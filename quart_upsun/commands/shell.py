"""`quart shell`: a Python shell with top-level `await`, a database session and all models."""

import ast
import asyncio
import os
import sys
from code import InteractiveConsole
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from importlib.util import find_spec
from inspect import CO_COROUTINE
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import click
import sqlalchemy
from quart import Quart
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.commands.description import load_all_models
from quart_upsun.database import Base, unpooled_engine
from quart_upsun.database.url import host_and_port, require_url
from quart_upsun.logging import configure_logging

if TYPE_CHECKING:
    from quart_upsun.extension import ToolkitState

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def run_shell(app: Quart) -> None:
    """Run a shell in the context of an application, until the user leaves it.

    Uses IPython or ptpython if one of them is installed and the input is a terminal.

    Raises:
        SystemExit: DATABASE_URL is not set.
    """
    state: ToolkitState = app.extensions["quart_upsun"]
    url = state.settings.direct_url
    require_url(url)
    configure_logging("warning", stream=sys.stderr)
    # Not the pool of the application, which ends transactions that are idle for seconds.
    engine = unpooled_engine(url, name="quart shell")
    session = AsyncSession(engine, expire_on_commit=False)
    names = shell_names(app, session)
    banner = (
        f"{app.import_name} with the database {url.database} at {host_and_port(url)}\n"
        "Use `await session.scalars(select(…))`, and `await session.commit()` to keep changes.\n"
        f"Names: {', '.join(sorted(names))}"
    )

    async def close() -> None:
        await session.close()  # rolls back
        await engine.dispose()
        await state.database.close()

    app_context = app.app_context()
    with asyncio.Runner() as runner:
        # Sets the application context for what the user enters, and for the coroutines in it.
        context = copy_context()
        runner.run(app_context.push(), context=context)
        try:
            context.run(choose_console(), names, banner, runner)
        finally:
            runner.run(close())


def shell_names(app: Quart, session: AsyncSession) -> dict[str, Any]:
    """Return the names in the shell: those of the application, the session and the models."""
    load_all_models(app)
    return {
        **{mapper.class_.__name__: mapper.class_ for mapper in Base.registry.mappers},
        "session": session,
        **{name: getattr(sqlalchemy, name) for name in ("delete", "func", "select", "text")},
        "update": sqlalchemy.update,
        **app.make_shell_context(),
    }


def choose_console() -> Callable[[dict[str, Any], str, asyncio.Runner], None]:
    """Return the best installed console."""
    if sys.stdin.isatty():
        if find_spec("IPython"):
            return run_ipython
        if find_spec("ptpython"):
            return run_ptpython
    return run_console


def run_ipython(names: dict[str, Any], banner: str, runner: asyncio.Runner) -> None:
    from IPython.terminal.embed import InteractiveShellEmbed

    shell = InteractiveShellEmbed(banner1=banner + "\n", user_ns=names)
    shell.loop_runner = partial(run_in_context, runner)
    shell.mainloop()


def run_ptpython(names: dict[str, Any], banner: str, runner: asyncio.Runner) -> None:
    from ptpython.repl import embed

    click.echo(banner)
    runner.run(embed(names, return_asyncio_coroutine=True), context=copy_context())


def run_console(names: dict[str, Any], banner: str, runner: asyncio.Runner) -> None:
    """Run Python's own console, with completion and the user's PYTHONSTARTUP."""
    startup = os.environ.get("PYTHONSTARTUP")
    if startup and Path(startup).is_file():
        exec(compile(Path(startup).read_text(), startup, "exec"), names)  # noqa: S102
    with suppress(ImportError):
        import readline
        from rlcompleter import Completer

        readline.set_completer(Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    AsyncConsole(names, partial(run_in_context, runner)).interact(banner, exitmsg="")


def run_in_context(runner: asyncio.Runner, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, in the application context of the shell."""
    return runner.run(coroutine, context=copy_context())


class AsyncConsole(InteractiveConsole):
    """Python's console with top-level `await`, as in `python -m asyncio`."""

    def __init__(self, names: dict[str, Any], run: Run) -> None:
        super().__init__(names)
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._names = names
        self._run = run

    def runcode(self, code: CodeType) -> None:
        """Run a statement; print the traceback of an exception."""
        try:
            result = FunctionType(code, self._names)()
            if code.co_flags & CO_COROUTINE:
                self._run(result)
        except SystemExit:
            raise
        except BaseException:
            self.showtraceback()
