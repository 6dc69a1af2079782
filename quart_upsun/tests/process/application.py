"""The sample application with slow, streaming and failing routes, for the real server.

Mounted applications with the same routes are below `/old`, and with others below `/raw`.

`python -m quart_upsun.tests.process.application [behaviour]`, where behaviour changes the startup:
`factory-fails`, `start-fails`, `start-hangs` or `impatient`.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from quart import Quart, Response, current_app, jsonify, request, websocket

from quart_upsun.current import current_toolkit
from quart_upsun.http import proxy
from quart_upsun.legacy import mount_wsgi
from quart_upsun.logging import get_logger
from quart_upsun.server import serve as server
from quart_upsun.testing import servers
from quart_upsun.tests.legacy import flask_app
from quart_upsun.tests.sample import Settings, create_app, load

log = get_logger(__name__)

NAME = "quart_upsun.tests.process.application"
CHUNK = b"x" * 65536
SHORT_BODY_TIMEOUT_SECONDS = 0.5  # with the behaviour `impatient`


def serving(
    processes: int, *behaviour: str, **variables: str
) -> AbstractAsyncContextManager[servers.Server]:
    """Start this module, and wait until it is ready."""
    return servers.serving(processes, NAME, *behaviour, **variables)


def factory(settings: Settings) -> Quart:
    behaviour = sys.argv[1] if len(sys.argv) > 1 else ""
    if behaviour == "factory-fails":
        raise RuntimeError("the factory failed")
    app = create_app(settings)
    if behaviour == "impatient":
        app.config["BODY_TIMEOUT"] = SHORT_BODY_TIMEOUT_SECONDS
        proxy.LINGER_SECONDS = 600.0

    @app.before_serving
    async def start() -> None:
        if behaviour == "start-fails":
            raise RuntimeError("the start failed")
        if behaviour == "start-hangs":
            log.info("hanging")
            await asyncio.sleep(60)

    @app.after_serving
    async def end() -> None:
        # Functions run in the order of their registration, so the pool is already closed.
        log.info("after serving", pooled=_pooled())

    app.add_url_rule("/slow", view_func=slow)
    app.add_url_rule("/body", view_func=body, methods=["POST"])
    app.add_url_rule("/form", view_func=form, methods=["POST"])
    app.add_url_rule("/quick", view_func=quick, methods=["GET", "POST"])
    app.add_url_rule("/polite", view_func=polite)
    app.add_url_rule("/stubborn", view_func=stubborn)
    app.add_url_rule("/flood", view_func=flood)
    app.add_url_rule("/block", view_func=block)
    app.add_url_rule("/thread", view_func=thread)
    app.add_url_rule("/error/<name>", view_func=error)
    app.add_url_rule("/crash/<token>", view_func=crash, methods=["GET", "POST"])
    app.add_url_rule("/origin", view_func=origin)
    app.add_url_rule("/process", view_func=process)
    app.add_url_rule("/log/<text>", view_func=log_text)
    app.add_websocket("/echo", view_func=echo)
    for path, application in (("/old", flask_app.create_app()), ("/raw", flask_app.raw)):
        mount_wsgi(
            *(app, application, path),
            limit=None,
            requires_schema=False,
            time_limit_seconds=flask_app.TIME_LIMIT_SECONDS if behaviour == "impatient" else 30,
            threads=32,
        )
    return app


async def slow() -> str:
    """Sleep for the seconds in the query."""
    log.info("sleeping")
    await asyncio.sleep(float(request.args["seconds"]))
    return "done"


async def body() -> str:
    """Read the body, and return its length."""
    log.info("reading")
    return str(len(await request.get_data(cache=False)))


async def form() -> Response:
    """Read a form, and return the number of fields and files."""
    fields, files = await request.form, await request.files
    return jsonify(
        fields=sum(len(values) for values in fields.listvalues()),
        files=sum(len(values) for values in files.listvalues()),
    )


async def quick() -> str:
    """Respond without reading the body."""
    return "answered"


async def polite() -> Response:
    """Stream until the process drains."""
    draining = current_toolkit().draining  # read here: the stream outlives the request context

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first\n"
        await draining.wait()
        yield b"last\n"

    return _stream(chunks())


async def stubborn() -> Response:
    """Stream without end, also while the process drains."""

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b"more\n"
            await asyncio.sleep(0.1)

    return _stream(chunks())


async def flood() -> Response:
    """Send more than fits into all buffers."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield CHUNK

    return _stream(chunks())


async def block() -> str:
    """Block the event loop."""
    log.info("blocking")
    time.sleep(60)  # noqa: ASYNC251
    return "done"


async def thread() -> str:
    """Block a thread."""
    log.info("blocking a thread")
    await asyncio.to_thread(time.sleep, 60)
    return "done"


async def error(name: str) -> str:
    raise RuntimeError("this view fails")


async def crash(token: str) -> str:
    """Raise an exception whose message contains all input."""
    raise ValueError(f"cannot use {token!r}, {dict(request.args)}, {dict(await request.form)}")


async def echo() -> None:
    while True:
        await websocket.send(await websocket.receive())


async def origin() -> Response:
    """Return the client's address, scheme and host as the application sees them."""
    return jsonify(address=request.remote_addr, scheme=request.scheme, host=request.host)


async def process() -> str:
    return str(os.getpid())


async def log_text(text: str) -> str:
    log.info("logged", path=request.path, text=text)
    return text


def _stream(chunks: AsyncIterator[bytes]) -> Response:
    response = Response(chunks, content_type="text/plain")
    response.timeout = None
    return response


def _pooled() -> int:
    checked_in: int = current_app.extensions["quart_upsun"].database.engine.pool.checkedin()
    return checked_in


if __name__ == "__main__":
    sys.exit(server.main(factory, load))
