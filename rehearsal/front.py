"""Run the platform's router and the gate behind it, which holds requests during a deploy."""

import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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
    """The public entry point of the application."""

    address: str
    """The URL."""
    gate: Gate


@asynccontextmanager
async def front(
    routes: Mapping[str, Route],
    *,
    application: str,
    domain: str,
    port: int,
    scratch: Path,
    log: Path,
) -> AsyncIterator[Front]:
    """Run the router on a port; without nginx, only the gate.

    Raises:
        FrontError: nginx did not start.
    """
    async with Gate(0, 0) as gate:
        program = nginx()
        if program is None:
            yield Front(f"http://127.0.0.1:{gate.held_port}", gate)
            return
        scratch.mkdir(parents=True, exist_ok=True)
        configuration = scratch / "nginx.conf"
        configuration.write_text(
            router.configuration(
                routes,
                application=application,
                domain=domain,
                port=port,
                held=gate.held_port,
                direct=gate.direct_port,
                scratch=str(scratch),
            )
        )
        running = await start_helper(
            program, "-e", "stderr", "-p", str(scratch), "-c", str(configuration), log=log
        )
        try:
            if not await accepts(port, START_SECONDS, lambda: not running.has_ended):
                raise FrontError(f"nginx failed to start: {log.read_text()[-1000:].strip()}")
            yield Front(f"http://127.0.0.1:{port}", gate)
        finally:
            await running.stop(signal.SIGTERM, STOP_SECONDS)
