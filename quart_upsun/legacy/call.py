"""A call of a WSGI application in a thread, whose response the event loop sends.

The thread never waits for the client's request body, which is complete before it starts. It waits
for a client that reads slowly, but not longer than the time limit.
"""

import asyncio
import contextvars
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from itertools import dropwhile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from quart.wrappers.response import ResponseBody

from quart_upsun.legacy.environ import WsgiApplication

# Responses of a known length up to this size are sent as a whole, which frees the thread at once.
MAX_WHOLE_BYTES = 512 * 1024
MAX_WAITING_CHUNKS = 4  # of a stream, until its thread waits for the client

OWN_FILES = {__file__, str(Path(__file__).with_name("threads.py")), threading.__file__}

ExceptionInfo = tuple[type[BaseException], BaseException, Any]


class Head(NamedTuple):
    """The beginning of a response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    """The whole body, or the first part of a stream."""
    is_whole: bool


class MountedApplicationError(Exception):
    """The mounted application raised an exception, or broke the rules of WSGI."""


class WsgiViolationError(TypeError):
    """The mounted application violates WSGI (PEP 3333). The message quotes no input."""


class _AbandonedError(Exception):
    """Ends the thread: nobody waits for the response, or its client does not read it."""


class WsgiCall:
    """One call of a WSGI application.

    Args:
        application: the WSGI application.
        environ: the WSGI environment.
        stall_seconds: how long the thread waits for a client that does not read.
    """

    def __init__(
        self, application: WsgiApplication, environ: dict[str, Any], *, stall_seconds: float
    ) -> None:
        self._application = application
        self._environ = environ
        self._body = environ["wsgi.input"]
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # with the request id for the log
        self._head: asyncio.Future[Head] = self._loop.create_future()
        self._chunks: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(MAX_WAITING_CHUNKS)
        self._is_abandoned = False
        self._thread: int | None = None
        # Of start_response:
        self._status: int | None = None
        self._headers: list[tuple[str, str]] = []
        self._is_started = False
        self._written: list[bytes] = []

    async def head(self) -> Head:
        """Return the beginning of the response.

        Raises:
            MountedApplicationError: the application failed before it.
        """
        return await self._head

    def abandon(self) -> None:
        """Discard the response. The thread ends at its next chunk."""
        self._is_abandoned = True
        self._room.release()

    def stack(self) -> str:
        """Return where the thread is, without values of variables; empty if it has ended."""
        frame = sys._current_frames().get(self._thread) if self._thread else None
        return format_frames(traceback.extract_stack(frame)) if frame else ""

    async def chunks(self, *, timeout_seconds: float) -> AsyncGenerator[bytes, None]:
        """Yield the rest of a stream.

        Raises:
            MountedApplicationError: the application failed.
            TimeoutError: no data for `timeout_seconds`.
        """
        while True:
            async with asyncio.timeout(timeout_seconds):
                chunk = await self._chunks.get()
            if chunk is None:
                return
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
            self._room.release()

    def run(self) -> None:
        """Call the application. Runs in a thread, and never raises."""
        self._thread = threading.get_ident()
        try:
            self._context.run(self._run)
        except _AbandonedError:
            self._tell(self._fail, MountedApplicationError("abandoned"))
        except BaseException as error:  # SystemExit, too: it must not end the thread
            failure = MountedApplicationError("the mounted application failed")
            failure.__cause__ = error
            self._tell(self._fail, failure)
        finally:
            self._thread = None
            self._body.close()

    def _run(self) -> None:
        errors = self._environ["wsgi.errors"]  # the application may replace it
        try:
            result: Iterable[bytes] = self._application(self._environ, self._start_response)
            try:
                self._send(iter(result))
            finally:
                close: Callable[[], None] | None = getattr(result, "close", None)
                if close is not None:
                    close()
        finally:
            errors.flush()

    def _start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExceptionInfo | None = None,
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._is_started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # breaks a reference cycle
        elif self._status is not None:
            _violate("start_response was called twice")
        code = status[:3]
        if not (code.isascii() and code.isdecimal() and "200" <= code <= "599"):
            _violate("start_response got an invalid status")
        for pair in headers:
            if any(character in "".join(pair) for character in "\r\n\0"):
                _violate("a response header contains a line break")
        self._status, self._headers = int(code), list(headers)
        return self._write

    def _write(self, data: bytes) -> None:
        """Keep data for the response: the callable that `start_response` returns."""
        self._written.append(data)

    def _send(self, result: Any) -> None:
        """Send the response: at once if it is short, otherwise as a stream."""
        length = remaining = None
        size = 0
        parts: list[bytes] = []
        for chunk in self._with_written(result):
            if self._is_abandoned:
                raise _AbandonedError
            if not isinstance(chunk, bytes):
                _violate(f"the response body contains {type(chunk).__name__} instead of bytes")
            if not chunk:
                continue
            if self._status is None:
                _violate("start_response was not called before the response body")
            if not self._is_started and not parts:
                length = remaining = self._content_length()
            if remaining is not None:
                chunk = chunk[:remaining]
                remaining -= len(chunk)
            if self._is_started:
                self._put(chunk)
                continue
            parts.append(chunk)
            size += len(chunk)
            if length is None or (remaining and size > MAX_WHOLE_BYTES):
                self._start(b"".join(parts), is_whole=False)
        if self._status is None:
            _violate("start_response was not called")
        if remaining:
            _violate(f"the response body ended {remaining} bytes early")
        if not self._is_started:
            self._start(b"".join(parts), is_whole=True)
        else:
            self._tell(self._chunks.put_nowait, None)

    def _with_written(self, result: Any) -> Iterable[bytes]:
        for chunk in result:
            yield from self._take_written()
            yield chunk
        yield from self._take_written()

    def _take_written(self) -> list[bytes]:
        written, self._written = self._written, []
        return written

    def _content_length(self) -> int | None:
        for name, value in self._headers:
            if name.lower() == "content-length" and value.strip().isdecimal():
                return int(value)
        return None

    def _start(self, body: bytes, *, is_whole: bool) -> None:
        self._is_started = True
        head = Head(self._status or 500, self._headers, body, is_whole)
        self._tell(self._resolve, head)

    def _put(self, chunk: bytes) -> None:
        """Send a chunk of a stream. Wait while the client has not read the previous ones."""
        if not self._room.acquire(timeout=self._stall_seconds) or self._is_abandoned:
            raise _AbandonedError
        self._tell(self._chunks.put_nowait, chunk)

    def _tell(self, function: Callable[..., None], value: object) -> None:
        """Call a function in the event loop."""
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:  # the loop is closed
            raise _AbandonedError from None

    def _resolve(self, head: Head) -> None:
        if not self._head.done():
            self._head.set_result(head)

    def _fail(self, error: MountedApplicationError) -> None:
        if self._head.done():
            self._chunks.put_nowait(error)
        elif not self._is_abandoned:
            self._head.set_exception(error)


class StreamBody(ResponseBody):
    """The body of a stream. It abandons the call if the response ends before it."""

    def __init__(self, call: WsgiCall, chunks: AsyncGenerator[bytes, None]) -> None:
        self._call = call
        self._chunks = chunks

    async def __aenter__(self) -> "StreamBody":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.abandon()
        await self._chunks.aclose()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks


def _violate(what: str) -> NoReturn:
    raise WsgiViolationError(f"The mounted application violates WSGI: {what}.")


def format_frames(frames: traceback.StackSummary) -> str:
    """Format a stack without the frames of this module that called the application."""
    return "".join(dropwhile(_is_own_frame, frames.format()))


def _is_own_frame(text: str) -> bool:
    return any(f'"{name}"' in text for name in OWN_FILES)
