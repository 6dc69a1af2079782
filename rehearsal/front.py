"""Run the platform's router and the gate behind it, which holds requests during a deploy."""

import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rehearsal import router
from rehearsal.configuration import Route
from rehearsal.gate import Gate
from rehearsal.network import accepts
from rehearsal.sandbox import start_helper

START_SECONDS = 5
STOP_SECONDS = 5
# Directories that may contain nginx and are not always on PATH.
PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")


class FrontError(Exception):
    """The router failed to start; the message says why."""


def nginx() -> str | None:
    """Return the path of nginx; None if it is not installed."""
    return shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(PLACES))


@dataclass
class Front:
    """The public entry point of an application."""

    address: str
    """The router's URL, the same for all applications."""
    gate: Gate


@asynccontextmanager
async def front(
    routes: Mapping[str, Route],
    *,
    applications: Sequence[str],
    domain: str,
    port: int,
    scratch: Path,
    log: Path,
) -> AsyncIterator[dict[str, Front]]:
    """Run the router on a port; without nginx, only the gates.

    Args:
        routes: the routes, by their URL in the configuration.
        applications: the names of the applications; the first one serves unknown hosts.
        domain: the value of `{default}` and `{all}`.
        port: the port to listen on, on 127.0.0.1.
        scratch: a directory that nginx may write to.
        log: the file for nginx's output.

    Raises:
        FrontError: nginx did not start.
    """
    async with AsyncExitStack() as stack:
        gates = {name: await stack.enter_async_context(Gate(0, 0)) for name in applications}
        program = nginx()
        if program is None:
            yield {
                name: Front(f"http://127.0.0.1:{gate.held_port}", gate)
                for name, gate in gates.items()
            }
            return
        first = gates[applications[0]]
        scratch.mkdir(parents=True, exist_ok=True)
        configuration = scratch / "nginx.conf"
        configuration.write_text(
            router.configuration(
                routes,
                application=applications[0],
                domain=domain,
                port=port,
                held=first.held_port,
                direct=first.direct_port,
                scratch=str(scratch),
                others={
                    name: (gates[name].held_port, gates[name].direct_port)
                    for name in applications[1:]
                },
            )
        )
        running = await start_helper(
            program, "-e", "stderr", "-p", str(scratch), "-c", str(configuration), log=log
        )
        try:
            if not await accepts(port, START_SECONDS, lambda: not running.has_ended):
                raise FrontError(f"nginx failed to start: {log.read_text()[-1000:].strip()}")
            yield {name: Front(f"http://127.0.0.1:{port}", gate) for name, gate in gates.items()}
        finally:
            await running.stop(signal.SIGTERM, STOP_SECONDS)
