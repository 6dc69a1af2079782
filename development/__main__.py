"""Run the development server, or a command with the development database.

  python -m development                  serve with reload, as `make run` does
  python -m development COMMAND ARG...   run a command with DATABASE_URL set

If DATABASE_URL is not set, an embedded PostgreSQL in .data/postgres is started. HOST and PORT set
the address of the server. If the database belongs to another environment, migrations and jobs do
not run unless DATABASE_ENVIRONMENT names that environment.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
from watchfiles import Change, awatch

from app.settings import DATA_DIRECTORY, ROOT, load_database_settings
from development.checks import (
    SetupError,
    check_address,
    check_database,
    check_node,
    check_owner,
)
from development.children import child, stop
from embedded_postgres import PostgresError, create_database, postgres
from quart_upsun.database.url import host_and_port
from quart_upsun.settings import SettingsError, load_env_file

QUART_APP = "app:create_app()"  # lets the `quart` command find the application
VERSIONS = ROOT / "alembic" / "versions"
READY_SECONDS = 30
STOP_SECONDS = 12  # the server shuts down gracefully in less than 10
RELOAD_SECONDS = 3
MIGRATION_STOP_SECONDS = 5
ASSETS_STOP_SECONDS = 2

Changes = asyncio.Future[set[tuple[Change, str]]]


def main() -> int:
    """Run until Ctrl-C or SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m development [--help] [COMMAND ARG...]",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    command = parser.parse_args().command
    try:
        load_env_file(ROOT)
        return asyncio.run(run(command) if command else serve())
    except (SetupError, PostgresError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 0


def log(text: str, since: float | None = None) -> None:
    """Print a message, with the elapsed time if `since` is given."""
    print(text if since is None else f"{text} ({time.monotonic() - since:.1f} s)", flush=True)


@asynccontextmanager
async def database() -> AsyncIterator[str]:
    """Yield the URL of a reachable database; start the embedded one if DATABASE_URL is not set."""
    begun = time.monotonic()
    if os.environ.get("DATABASE_URL"):
        url = load_database_settings().direct_url
        await check_database(url)
        log(
            f"Using the database {url.database} at {host_and_port(url)} (from DATABASE_URL)",
            begun,
        )
        yield os.environ["DATABASE_URL"]
        return
    with postgres(DATA_DIRECTORY / "postgres") as server:
        address = await create_database(server, "app", exist_ok=True)
        log(f"PostgreSQL is running in {(DATA_DIRECTORY / 'postgres').relative_to(ROOT)}", begun)
        yield address


async def run(command: list[str]) -> int:
    """Run a command in the terminal; return its exit code."""
    loop = asyncio.get_running_loop()
    async with database() as url:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={"QUART_APP": QUART_APP, **os.environ, "DATABASE_URL": url, "PATH": path},
            )
        except OSError as error:
            raise SetupError(f"Cannot run {command[0]}: {error.strerror}.") from None
        # The command also receives Ctrl-C from the terminal, and decides what to do.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(signal.SIGTERM, process.terminate)
        code = await process.wait()
        return code if code >= 0 else 128 - code


async def serve() -> int:
    """Set up and serve; stop everything in reverse order."""
    force_stop = stop_at_signals()
    node = check_node()
    host, port = check_address(os.environ)
    async with database() as url:
        environment = {
            "FLASK_DEBUG": "1",
            **os.environ,
            "DATABASE_URL": url,
            "HOST": host,
            "PORT": str(port),
        }
        async with assets(node, environment, force_stop) as built:
            if foreign := await check_owner(load_database_settings(url)):
                log(f"Migrations and jobs are disabled: {foreign}")
            elif not await migrate(environment, force_stop):
                raise SetupError("The migration failed; see the errors above.")
            if not await built:
                raise SetupError("The asset build failed; see the errors above.")
            await serve_with_reload(
                environment, origin(host, port), force_stop, migrates=foreign is None
            )
    raise AssertionError("unreachable: serves until canceled")


def stop_at_signals() -> asyncio.Event:
    """Cancel the current task at the first signal; set the returned event at the second."""
    task = asyncio.current_task()
    force_stop = asyncio.Event()

    def handle() -> None:
        if task is None or task.cancelling():
            force_stop.set()
        else:
            log("Stopping (press Ctrl-C again to force)")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, handle)
    return force_stop


def origin(host: str, port: int) -> str:
    """Return the URL at which a local browser reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def assets(
    node: str, environment: Mapping[str, str], force_stop: asyncio.Event
) -> AsyncIterator[asyncio.Future[bool]]:
    """Build the assets and watch them; yield a future: whether the first build succeeded."""
    async with child(
        *(node, str(ROOT / "assets" / "build.mjs"), "--watch"),
        environment=environment,
        seconds=ASSETS_STOP_SECONDS,
        force_stop=force_stop,
        piped=True,
    ) as process:
        built = asyncio.get_running_loop().create_future()
        output = asyncio.create_task(show_builds(process, built))
        try:
            yield built
        finally:
            output.cancel()


async def show_builds(process: Process, built: asyncio.Future[bool]) -> None:
    """Print the output of the builds; set `built` when the first build ends."""
    while process.stdout is not None and (line := (await process.stdout.readline()).decode()):
        print(line, end="", flush=True)
        if not built.done() and line.startswith(("built ", "build failed")):
            built.set_result(line.startswith("built "))
    if not built.done():
        built.set_result(False)
    else:
        log("The asset build stopped; restart `make run` to rebuild after changes in assets/")


async def migrate(environment: Mapping[str, str], force_stop: asyncio.Event) -> bool:
    """Migrate the database to the latest revision; return whether it succeeded."""
    begun = time.monotonic()
    async with child(
        *(sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head"),
        environment=environment,
        seconds=MIGRATION_STOP_SECONDS,
        force_stop=force_stop,
    ) as process:
        if await process.wait() != 0:
            return False
    log("The database is up to date", begun)
    return True


async def serve_with_reload(
    environment: Mapping[str, str], origin: str, force_stop: asyncio.Event, *, migrates: bool
) -> None:
    """Run the server; restart it when its files change."""
    served = False
    watcher = awatch(ROOT / "app", ROOT / "quart_upsun", VERSIONS, watch_filter=concerns_server)
    # Watch before the server starts, so that no change is missed.
    change = asyncio.ensure_future(anext(watcher))
    try:
        while True:
            begun = time.monotonic()
            async with child(
                *(sys.executable, "-m", "app.server"),
                environment=environment,
                seconds=STOP_SECONDS,
                force_stop=force_stop,
            ) as server:
                if await is_ready(server, origin, change):
                    served = True
                    log(f"Serving on {origin} (press Ctrl-C to stop)", begun)
                elif not served and not change.done():
                    raise SetupError(
                        f"The server is not ready; see the errors above or {origin}/readyz."
                    )
                paths = await next_change(server, change)
                change = asyncio.ensure_future(anext(watcher))
                await stop(server, RELOAD_SECONDS, force_stop)
            log(f"Changed: {', '.join(sorted(str(path.relative_to(ROOT)) for path in paths))}")
            if migrates and any(path.is_relative_to(VERSIONS) for path in paths):
                # If it fails, the server still starts and reports the revision that it needs.
                await migrate(environment, force_stop)
    finally:
        change.cancel()
        await asyncio.wait({change})


def concerns_server(change: Change, name: str) -> bool:
    """Return whether the server must restart when this file changes."""
    path = Path(name)
    if path == ROOT / "app" / "manifest.json":
        return True
    return (
        path.suffix in {".py", ".html", ".txt"}
        and not path.name.startswith(".")  # lock and swap files of editors
        and not path.is_relative_to(ROOT / "app" / "static")
    )


async def is_ready(server: Process, origin: str, change: Changes) -> bool:
    """Wait until the server is ready; return False if it exits, a file changes or time runs out."""
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        while server.returncode is None and not change.done() and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if (await client.get(f"{origin}/readyz")).status_code == 200:
                    return True
            await asyncio.sleep(0.05)
    return False


async def next_change(server: Process, change: Changes) -> set[Path]:
    """Wait for a change of the server's files; report it if the server exits before."""
    ended = asyncio.ensure_future(server.wait())
    await asyncio.wait((change, ended), return_when=asyncio.FIRST_COMPLETED)
    if not change.done():
        log(f"The server exited with code {ended.result()}; waiting for changes")
    ended.cancel()
    return {Path(name) for _, name in await change}


if __name__ == "__main__":
    sys.exit(main())
