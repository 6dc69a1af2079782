"""The production server, which an application starts with `main()`.

It runs Hypercorn through its public API, with one event loop per process and several processes on
one socket. Hypercorn's own supervisor is not used: with more than one worker it loses requests at
SIGTERM, and it reports success when a worker fails to start.

Exit codes: 0 after a graceful shutdown (SIGTERM or SIGINT), 1 if the server failed to start or a
process had to be killed.
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
from quart_upsun.server.memory import return_free_memory
from quart_upsun.server.supervisor import Supervisor
from quart_upsun.settings import Settings

log = get_logger(__name__)

AnySettings = TypeVar("AnySettings", bound=Settings)

# The steps of a graceful shutdown. The platform allows a worker 15 seconds and does not document
# the limit of a web container, so the total is below 10.
NOTICE_SECONDS = 0.2  # still accepting: readiness fails, and each response closes its connection
SETTLE_SECONDS = 0.2  # not accepting: the last connections send their requests
# Seconds since SIGTERM:
CANCEL_SECONDS = 7.5  # requests that still run are canceled
EXIT_SECONDS = (
    8.5  # the process exits, even if something hangs, such as a client that does not read
)
KILL_SECONDS = 9.5  # the supervisor kills a process that has not exited

MEMORY_PER_PROCESS_MB = 128  # with room for requests


def main(factory: Callable[[AnySettings], Quart], load: Callable[[], AnySettings]) -> int:
    """Serve until stopped; return the exit code.

    Args:
        factory: creates the application.
        load: reads its settings.
    """
    signals.exit_immediately()
    return_free_memory()
    settings = load()
    configure_logging(settings.log_level)
    app = factory(settings)  # opens no connection, so it can be forked
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            sys.stderr.write(f"HOST={settings.host} is not an address of this machine: {reason}.\n")
        else:
            sys.stderr.write(f"Cannot listen on {settings.host}:{settings.port}: {reason}.\n")
        return 1
    processes = settings.web_concurrency or processes_for(upsun.container_limits())
    host, port = listener.getsockname()[:2]
    log.info("server starting", host=host, port=port, processes=processes)
    with listener:
        if processes == 1:
            return work(app, listener)
        # Moves all objects out of the garbage collector's reach, so that forked processes keep
        # sharing their memory pages.
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
    """Return the number of processes that fit a container; one if its limits are unknown."""
    if limits is None:
        return 1
    # At least two, even on half a core: one serves while the other is restarted.
    by_cpu = max(2, round(2 * limits.cpu))
    return max(1, min(limits.memory // MEMORY_PER_PROCESS_MB, by_cpu))


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, which all processes share."""
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
    """Serve in this process until stopped; return its exit code.

    Args:
        app: the application.
        listener: the listening socket, which this process closes when it drains.
        report_ready: called once connections are accepted.
        parent: a pipe that the supervisor holds open. Its end means that the supervisor has died,
            and this process must stop.
    """
    try:
        asyncio.run(serve_until_stopped(app, listener, report_ready, parent))
    except Exception:
        log.exception("server failed")
        return 1
    finally:
        signals.ignore_signals()
    return 0


async def serve_until_stopped(
    app: Quart, listener: socket.socket, report_ready: Callable[[], None], parent: int | None
) -> None:
    """Serve; at SIGTERM or SIGINT fail readiness, drain the requests in flight, and return."""
    loop = asyncio.get_running_loop()
    state: ToolkitState = app.extensions["quart_upsun"]
    draining, database = state.draining, state.database
    in_flight = InFlightMiddleware(app)
    # Hypercorn closes the descriptor that it is given.
    descriptor = listener.detach()

    def stop() -> None:
        if draining.is_set():
            return
        log.info("server stopping", in_flight=len(in_flight.tasks))
        draining.set()
        loop.call_later(CANCEL_SECONDS, in_flight.cancel)

    def supervisor_died(pipe: int) -> None:
        loop.remove_reader(pipe)
        signal.raise_signal(signal.SIGTERM)

    async def shutdown_trigger() -> None:
        # Hypercorn calls this when it has started to accept. Until then a signal exits at once,
        # even if the startup of the application hangs.
        signals.listen_for_stop(stop, seconds=EXIT_SECONDS, process="server")
        if parent is not None:
            loop.add_reader(parent, supervisor_died, parent)
        freeze_heap()
        log.info("server ready")
        report_ready()
        gate_check = asyncio.create_task(database.gate.wait())
        await draining.wait()
        gate_check.cancel()
        await asyncio.sleep(NOTICE_SECONDS)
        await stop_accepting(descriptor)
        await asyncio.sleep(SETTLE_SECONDS)

    coalesce_writes()
    try:
        await serve(
            in_flight, hypercorn_config(descriptor), shutdown_trigger=shutdown_trigger, mode="asgi"
        )
    finally:
        signals.block_signals()
    log.info("server stopped")


async def stop_accepting(listener: int) -> None:
    """Stop accepting connections when the accept queue is empty.

    Hypercorn would stop accepting and at the same time close every connection without a request. A
    busy server then loses tens of requests, on connections that were just accepted or are in the
    kernel's queue. A client that connects between the check and the close is still reset. That is
    rare, and the kernel offers no way to avoid it.
    """
    for _ in range(100):
        waiting, _, _ = select.select([listener], [], [], 0)
        if not waiting:
            break
        await asyncio.sleep(0)
    asyncio.get_running_loop().remove_reader(listener)
    # Keeps the descriptor valid, because Hypercorn closes it. Once the last process has closed the
    # listening socket, the kernel refuses connections.
    with socket.socket() as replacement:
        os.dup2(replacement.fileno(), listener)


def hypercorn_config(listener: int) -> Config:
    config = Config()
    config.bind = [f"fd://{listener}"]
    config.backlog = 1024
    # Longer than the keep-alive timeout of proxies. Otherwise a proxy may send a request on a
    # connection that is just being closed, and answer 502.
    config.keep_alive_timeout = 90
    config.keep_alive_max_requests = 1_000_000
    config.graceful_timeout = EXIT_SECONDS + 1  # this module enforces the limits
    config.accesslog = None  # the platform's web server has one
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.websocket_ping_interval = 20
    config.websocket_max_message_size = 1024 * 1024
    return config


class InFlightMiddleware:
    """Tracks the requests in flight, to cancel them when the shutdown takes too long."""

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
            raise RuntimeError("a request must run in an asyncio task")
        self.tasks.add(task)
        try:
            await self.app(scope, receive, send)
        finally:
            self.tasks.discard(task)

    def cancel(self) -> None:
        if self.tasks:
            log.error("requests cancelled", count=len(self.tasks))
        for task in self.tasks:
            task.cancel()


def freeze_heap() -> None:
    """Exclude long-lived objects from garbage collection.

    Measured with this application: it reduces the 99th percentile of response times by a third.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
