"""The production server, which an application starts with `main()`.

Hypercorn through its public API, one event loop per process, several processes on one socket. Its
own supervisor is not used: with more than one worker it loses requests at SIGTERM, and reports
success when a worker could not start.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the server could not start or a process had to be
killed at the end.
"""

import asyncio
import errno
import gc
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import TypeVar

from hypercorn.asyncio import serve
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart

from quart_upsun import platform as upsun
from quart_upsun.compat.hypercorn import coalesce_writes
from quart_upsun.extension import ToolkitState
from quart_upsun.logging import configure_logging, get_logger
from quart_upsun.server import signals
from quart_upsun.server.supervisor import Supervisor
from quart_upsun.settings import Settings

log = get_logger(__name__)

AnySettings = TypeVar("AnySettings", bound=Settings)

# Seconds since SIGTERM. The platform allows a worker 15 and does not tell what it allows a web
# container, so all of it stays below 10.
NOTICE_SECONDS = 0.2  # still accepting: every answer closes its connection, readiness is down
SETTLE_SECONDS = 0.2  # no longer accepting: who was accepted last sends a request
CANCEL_SECONDS = 7.5  # what is not answered by now is cut off
EXIT_SECONDS = 8.5  # whatever still hangs, such as a client that does not read, the process ends
KILL_SECONDS = 9.5  # a process that did not even hear is killed by its supervisor

SHUTDOWN_TIMEOUT_MESSAGE = "gave up waiting for requests and connections to end"

MEMORY_PER_PROCESS_MB = 128  # megabytes, with room for requests


def main(factory: Callable[[AnySettings], Quart], load: Callable[[], AnySettings]) -> int:
    """Serve until told to stop, and return the exit code.

    Args:
        factory: makes the application.
        load: reads its settings.
    """
    signals.exit_immediately()
    settings = load()
    configure_logging(settings.log_level)
    app = factory(settings)  # opens nothing, so that processes can be forked with it
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            sys.stderr.write(
                f"HOST is not an address of this machine: {settings.host}: {reason}.\n"
            )
        else:
            sys.stderr.write(f"Cannot listen on {settings.host}:{settings.port}: {reason}.\n")
        return 1
    processes = settings.web_concurrency or processes_for(upsun.container_limits())
    host, port = listener.getsockname()[:2]
    log.info("starting", host=host, port=port, processes=processes)
    with listener:
        if processes == 1:
            return work(app, listener)
        # What exists now is shared by all processes until somebody writes to it.
        gc.collect()
        gc.freeze()
        return Supervisor(
            processes,
            listener,
            lambda report_ready, parent: work(
                app, listener, report_ready=report_ready, parent=parent
            ),
            stop_seconds=KILL_SECONDS,
        ).run()


def processes_for(limits: upsun.ContainerLimits | None) -> int:
    """Return how many processes a container has room for; one where no limit is known."""
    if limits is None:
        return 1
    # Two even on half a core: one serves while the other is being replaced.
    by_cpu = max(2, round(2 * limits.cpu))
    return max(1, min(limits.memory // MEMORY_PER_PROCESS_MB, by_cpu))


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that all processes accept from."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


def work(
    app: Quart,
    listener: socket.socket,
    *,
    report_ready: Callable[[], None] = lambda: None,
    parent: int | None = None,
) -> int:
    """Serve in this process until told to stop, and return its exit code.

    Args:
        app: the application.
        listener: where to accept connections; closed by this process when it drains.
        report_ready: called once connections are accepted.
        parent: a pipe whose end means that the supervisor is gone, and the socket to be given up.
    """
    try:
        asyncio.run(serve_until_stopped(app, listener, report_ready, parent))
    except Exception:
        log.exception("the server failed")
        return 1
    finally:
        signals.ignore_signals()
    return 0


async def serve_until_stopped(
    app: Quart, listener: socket.socket, report_ready: Callable[[], None], parent: int | None
) -> None:
    """Serve; at SIGTERM or SIGINT let readiness fall, answer what is in flight, and end."""
    loop = asyncio.get_running_loop()
    state: ToolkitState = app.extensions["quart_upsun"]
    draining, database = state.draining, state.database
    in_flight = InFlightMiddleware(app)
    # Given away: Hypercorn closes what it is given.
    descriptor = listener.detach()

    def stop() -> None:
        if draining.is_set():
            return
        log.info("stopping", in_flight=len(in_flight.tasks))
        draining.set()
        loop.call_later(CANCEL_SECONDS, in_flight.cancel)

    def supervisor_died(pipe: int) -> None:
        loop.remove_reader(pipe)
        signal.raise_signal(signal.SIGTERM)

    async def shutdown_trigger() -> None:
        # Hypercorn calls this when it has started to accept. Before, a signal ends the process
        # at once, even if the application hangs while it starts.
        signals.listen_for_stop(stop, seconds=EXIT_SECONDS, last_words=SHUTDOWN_TIMEOUT_MESSAGE)
        if parent is not None:
            loop.add_reader(parent, supervisor_died, parent)
        freeze_heap()
        log.info("serving")
        report_ready()
        knocking = asyncio.create_task(database.gate.wait())
        await draining.wait()
        knocking.cancel()
        await asyncio.sleep(NOTICE_SECONDS)
        await refuse(descriptor)
        await asyncio.sleep(SETTLE_SECONDS)

    coalesce_writes()
    try:
        await serve(
            in_flight, hypercorn_config(descriptor), shutdown_trigger=shutdown_trigger, mode="asgi"
        )
    finally:
        signals.block_signals()
    log.info("stopped")


async def refuse(listener: int) -> None:
    """Stop accepting, at a moment when nobody waits to be accepted.

    Hypercorn does it in one step with closing every connection that has no request yet. At that
    step a busy server loses tens of requests: of those who were accepted a moment before, and of
    those whom the kernel had queued. Who connects between the last look and the end of the socket
    is still reset: that is rare, and the kernel knows no way to refuse without it.
    """
    for _ in range(100):
        waiting, _, _ = select.select([listener], [], [], 0)
        if not waiting:
            break
        await asyncio.sleep(0)
    asyncio.get_running_loop().remove_reader(listener)
    # The number stays in use, so that Hypercorn can close it. The socket that was behind it ends
    # with the last process that has it; from then on the kernel refuses connections.
    with socket.socket() as replacement:
        os.dup2(replacement.fileno(), listener)


def hypercorn_config(listener: int) -> Config:
    config = Config()
    config.bind = [f"fd://{listener}"]
    config.backlog = 1024
    # Longer than a proxy keeps a connection for its next request; the other way round the two
    # cross each other, and the request ends as a 502.
    config.keep_alive_timeout = 90
    config.keep_alive_max_requests = 1_000_000
    config.graceful_timeout = EXIT_SECONDS + 1  # this module keeps the time
    config.accesslog = None  # the platform's web server keeps one
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.websocket_ping_interval = 20
    config.websocket_max_message_size = 1024 * 1024
    return config


class InFlightMiddleware:
    """Knows the requests being answered, to cut them off when the time is up."""

    def __init__(self, app: ASGIFramework) -> None:
        self.app = app
        self.tasks: set[asyncio.Task[None]] = set()

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("requests are handled in tasks")
        self.tasks.add(task)
        try:
            await self.app(scope, receive, send)
        finally:
            self.tasks.discard(task)

    def cancel(self) -> None:
        if self.tasks:
            log.error("requests cut off", count=len(self.tasks))
        for task in self.tasks:
            task.cancel()


def freeze_heap() -> None:
    """Take what lives as long as the process out of the garbage collector's way.

    Measured with this application: a third off the 99th percentile of response times.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
