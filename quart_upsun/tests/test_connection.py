"""How the ASGI connection of a request ends: answered, disconnected, or canceled by the server."""

import asyncio
from collections.abc import AsyncIterator, Callable, MutableSequence
from typing import Any

import pytest
from quart import Quart, Response, request

from quart_upsun.http.connection import Connection

SECONDS = 20.0
NO_BODY = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}


async def let_others_run() -> None:
    """Let tasks end that were canceled, with their callbacks."""
    for _ in range(5):
        await asyncio.sleep(0)


class Exchange:
    """A request to an application, whose ASGI messages a test sends and reads."""

    def __init__(self, app: Quart, path: str, **headers: str) -> None:
        self.received: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: MutableSequence[dict[str, Any]] = []
        scope: Any = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost")]
            + [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 5000),
        }
        self.received.put_nowait(NO_BODY)
        self.ended_normally = False
        self.task = asyncio.create_task(self._run(Connection(app, scope)))

    async def _run(self, connection: Connection) -> None:
        await connection(self._receive, self._send)
        await let_others_run()  # raises a cancellation that is still pending
        self.ended_normally = True

    async def _receive(self) -> Any:
        message = await self.received.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def wait(self) -> None:
        """Wait for the end of the request, and raise its error."""
        async with asyncio.timeout(SECONDS):
            await self.task


class View:
    """A view that waits until it is canceled."""

    def __init__(self, on_cancel: Callable[[], Any] = lambda: None) -> None:
        self.started, self.canceled = asyncio.Event(), asyncio.Event()
        self.on_cancel = on_cancel

    async def __call__(self) -> str:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.canceled.set()
            answer = self.on_cancel()
            await asyncio.sleep(0)
            if answer is None:
                raise
            return str(answer)
        raise AssertionError("unreachable")


def create_app(view: View | None = None) -> Quart:
    app = Quart(__name__)
    app.config["BODY_LIMITS"] = {}
    view = view or View()

    @app.get("/waiting")
    async def waiting() -> str:
        return await view()

    @app.get("/data")
    async def data() -> str:
        return "0123456789"

    @app.get("/range")
    async def part() -> Response:
        response = Response("0123456789")
        await response.make_conditional(request, accept_ranges=True, complete_length=10)
        return response

    @app.get("/stream")
    async def stream() -> AsyncIterator[bytes]:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            yield b"second"

        return parts()

    return app


async def started(view: View) -> Exchange:
    exchange = Exchange(create_app(view), "/waiting")
    async with asyncio.timeout(SECONDS):
        await view.started.wait()
    return exchange


@pytest.fixture(autouse=True)
async def no_task_remains() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await let_others_run()
    assert {
        task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()
    } == set()


async def test_disconnect_cancels_the_view() -> None:
    view = View()
    exchange = await started(view)
    exchange.received.put_nowait(DISCONNECT)
    await exchange.wait()
    assert view.canceled.is_set()
    assert exchange.ended_normally
    assert exchange.sent == []


async def test_cancellation_that_a_view_suppresses_does_not_remain() -> None:
    exchange = await started(View(on_cancel=lambda: "late"))
    exchange.received.put_nowait(DISCONNECT)
    await exchange.wait()
    assert exchange.ended_normally
    assert exchange.sent[-1]["body"] == b"late"
    assert exchange.task.cancelling() == 0


async def test_server_cancels_the_view() -> None:
    view = View()
    exchange = await started(view)
    exchange.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.wait()
    assert view.canceled.is_set()
    assert exchange.task.cancelled()


async def test_server_cancels_after_a_disconnect() -> None:
    exchange: Exchange
    view = View(on_cancel=lambda: exchange.task.cancel() and None)
    exchange = await started(view)
    exchange.received.put_nowait(DISCONNECT)
    with pytest.raises(asyncio.CancelledError):
        await exchange.wait()
    assert exchange.task.cancelled()


async def test_error_while_receiving_is_raised() -> None:
    exchange = await started(View())
    exchange.received.put_nowait(OSError("the connection is broken"))
    with pytest.raises(OSError, match="the connection is broken"):
        await exchange.wait()


async def test_complete_body_is_one_message() -> None:
    exchange = Exchange(create_app(), "/data")
    await exchange.wait()
    start, body = exchange.sent
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert body == {"type": "http.response.body", "body": b"0123456789", "more_body": False}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/range", b"234"), ("/stream", b"firstsecond")],
)
async def test_other_bodies(path: str, body: bytes) -> None:
    exchange = Exchange(create_app(), path, range="bytes=2-4")
    await exchange.wait()
    assert b"".join(message.get("body", b"") for message in exchange.sent) == body
    assert [message.get("more_body") for message in exchange.sent][-1] is False
