"""The way in: the platform's router, and the gate behind it that holds requests."""

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
# Where it is installed; not all of these are on everybody's PATH.
PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")


class FrontError(Exception):
    """The router does not start; the message says why."""


def nginx() -> str | None:
    """Return the path of nginx, if it is installed."""
    return shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(PLACES))


@dataclass
class Front:
    """What visitors talk to."""

    address: str
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
    """Run the router on a port; without nginx, the gate alone.

    Raises:
        FrontError: nginx does not take the configuration.
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
                raise FrontError(f"The router does not start: {log.read_text()[-1000:].strip()}")
            yield Front(f"http://127.0.0.1:{port}", gate)
        finally:
            await running.stop(signal.SIGTERM, STOP_SECONDS)
