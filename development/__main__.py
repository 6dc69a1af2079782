"""The development server: everything that `make run` starts, and its end.

  python -m development                  serve with reload, as `make run` does
  python -m development COMMAND ARG...   run a command that needs the database

The database is the one that DATABASE_URL names, or else an embedded PostgreSQL in .data/postgres,
whose address the command finds in DATABASE_URL. HOST and PORT say where to serve. A database that
belongs to another environment is not migrated, and its jobs are not run, unless
DATABASE_ENVIRONMENT names that environment.
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
from quart_upsun.settings import SettingsError

QUART_APP = "app:create_app()"  # where the `quart` command finds its commands
VERSIONS = ROOT / "alembic" / "versions"
READY_SECONDS = 30
STOP_SECONDS = 12  # the server ends requests in flight after less than 10
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
        return asyncio.run(run(command) if command else serve())
    except (SetupError, PostgresError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 0


def say(text: str, since: float | None = None) -> None:
    """Tell the developer what was done, and how long it took."""
    print(text if since is None else f"{text} ({time.monotonic() - since:.1f} s)", flush=True)


@asynccontextmanager
async def database() -> AsyncIterator[str]:
    """Yield the URL of a database that answers, and keep it answering if it is the embedded one."""
    begun = time.monotonic()
    if os.environ.get("DATABASE_URL"):
        url = load_database_settings().database_url
        await check_database(url)
        say(
            f"Using the database {url.database} at {host_and_port(url)}, as DATABASE_URL says",
            begun,
        )
        yield os.environ["DATABASE_URL"]
        return
    with postgres(DATA_DIRECTORY / "postgres") as server:
        address = await create_database(server, "app", exist_ok=True)
        say(f"PostgreSQL is running in {(DATA_DIRECTORY / 'postgres').relative_to(ROOT)}", begun)
        yield address


async def run(command: list[str]) -> int:
    """Run a command on the terminal, and return its exit code."""
    loop = asyncio.get_running_loop()
    async with database() as url:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={"QUART_APP": QUART_APP, **os.environ, "DATABASE_URL": url, "PATH": path},
            )
        except OSError as error:
            raise SetupError(f"{command[0]} cannot be run: {error.strerror}.") from None
        # The terminal sends Ctrl-C to the command as well, which decides what it means.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(signal.SIGTERM, process.terminate)
        code = await process.wait()
        return code if code >= 0 else 128 - code


async def serve() -> int:
    """Check, set up, serve; what was started ends in the opposite order."""
    hurry = stop_at_signals()
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
        async with assets(node, environment, hurry) as built:
            if foreign := await check_owner(load_database_settings(url)):
                say(f"Not migrating, and not running jobs: {foreign}")
            elif not await migrate(environment, hurry):
                raise SetupError("The database cannot be migrated; the lines above say why.")
            if not await built:
                raise SetupError("The assets cannot be built; the lines above say why.")
            await serve_with_reload(
                environment, origin(host, port), hurry, migrates=foreign is None
            )
    raise AssertionError("serves until it is cancelled")


def stop_at_signals() -> asyncio.Event:
    """Cancel this task at the first signal; set the event that is returned at the second."""
    task = asyncio.current_task()
    hurry = asyncio.Event()

    def handle() -> None:
        if task is None or task.cancelling():
            hurry.set()
        else:
            say("Stopping (once more: at once)")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, handle)
    return hurry


def origin(host: str, port: int) -> str:
    """Return the address for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def assets(
    node: str, environment: Mapping[str, str], hurry: asyncio.Event
) -> AsyncIterator[asyncio.Future[bool]]:
    """Build the assets, and again at each change; yield whether the first build succeeds."""
    async with child(
        *(node, str(ROOT / "assets" / "build.mjs"), "--watch"),
        environment=environment,
        seconds=ASSETS_STOP_SECONDS,
        hurry=hurry,
        piped=True,
    ) as process:
        built = asyncio.get_running_loop().create_future()
        showing = asyncio.create_task(show_builds(process, built))
        try:
            yield built
        finally:
            showing.cancel()


async def show_builds(process: Process, built: asyncio.Future[bool]) -> None:
    """Show what the build says, and find out there how the first one ended."""
    while process.stdout is not None and (line := (await process.stdout.readline()).decode()):
        print(line, end="", flush=True)
        if not built.done() and line.startswith(("built ", "build failed")):
            built.set_result(line.startswith("built "))
    if not built.done():
        built.set_result(False)
    else:
        say("The asset build has ended: a change under assets/ shows at the next `make run`")


async def migrate(environment: Mapping[str, str], hurry: asyncio.Event) -> bool:
    """Bring the database to the newest revision, and tell whether that worked."""
    begun = time.monotonic()
    async with child(
        *(sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head"),
        environment=environment,
        seconds=MIGRATION_STOP_SECONDS,
        hurry=hurry,
    ) as process:
        if await process.wait() != 0:
            return False
    say("The database is migrated", begun)
    return True


async def serve_with_reload(
    environment: Mapping[str, str], origin: str, hurry: asyncio.Event, *, migrates: bool
) -> None:
    """Run the server, again after each change of what it consists of."""
    served = False
    following = awatch(ROOT / "app", ROOT / "quart_upsun", VERSIONS, watch_filter=concerns_server)
    change = asyncio.ensure_future(anext(following))  # from before the start: none is missed
    try:
        while True:
            begun = time.monotonic()
            async with child(
                *(sys.executable, "-m", "app.server"),
                environment=environment,
                seconds=STOP_SECONDS,
                hurry=hurry,
            ) as server:
                if await is_ready(server, origin, change):
                    served = True
                    say(f"Serving on {origin} (Ctrl-C stops)", begun)
                elif not served and not change.done():
                    raise SetupError(
                        f"The server did not become ready; see above or {origin}/readyz."
                    )
                paths = await next_change(server, change)
                change = asyncio.ensure_future(anext(following))
                await stop(server, RELOAD_SECONDS, hurry)
            say(f"Changed: {', '.join(sorted(str(path.relative_to(ROOT)) for path in paths))}")
            if migrates and any(path.is_relative_to(VERSIONS) for path in paths):
                # Where it fails the server starts all the same, and says which revision it needs.
                await migrate(environment, hurry)
    finally:
        change.cancel()
        await asyncio.wait({change})


def concerns_server(change: Change, name: str) -> bool:
    """Tell whether the server has read this file when it started."""
    path = Path(name)
    if path == ROOT / "app" / "manifest.json":
        return True
    return (
        path.suffix in {".py", ".html", ".txt"}
        and not path.name.startswith(".")  # editors put their locks and drafts there
        and not path.is_relative_to(ROOT / "app" / "static")
    )


async def is_ready(server: Process, origin: str, change: Changes) -> bool:
    """Wait for readiness; tell whether it came, before an end, a change, or too much time."""
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        while server.returncode is None and not change.done() and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if (await client.get(f"{origin}/readyz")).status_code == 200:
                    return True
            await asyncio.sleep(0.05)
    return False


async def next_change(server: Process, change: Changes) -> set[Path]:
    """Wait for the change that makes a restart necessary; say so if the server ends before."""
    ended = asyncio.ensure_future(server.wait())
    await asyncio.wait((change, ended), return_when=asyncio.FIRST_COMPLETED)
    if not change.done():
        say(f"The server ended with exit code {ended.result()}; waiting for a change")
    ended.cancel()
    return {Path(name) for _, name in await change}


if __name__ == "__main__":
    sys.exit(main())
