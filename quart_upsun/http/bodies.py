"""How much of a request's body is taken in, into how many fields, and what came in with it."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import cached_property
from io import BytesIO
from typing import Any, NamedTuple

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Request as QuartRequest
from quart import current_app
from quart.asgi import ASGIHTTPConnection
from quart.formparser import FormDataParser as QuartFormDataParser
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.request import Body as QuartBody
from werkzeug.exceptions import (
    BadRequest,
    RequestEntityTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from quart_upsun.compat import quart as compat

# Bytes of a large body that wait for the view; while there are more, nothing is received.
MAX_BUFFERED_BYTES = 512 * 1024
CHUNK_BYTES = 64 * 1024  # bytes

CONTENT_ENCODING_REFUSED = "The request body must not have a Content-Encoding."


class UnsupportedContentCodingError(UnsupportedMediaType):
    """415 that names the one content coding for request bodies (RFC 9110, section 15.5.16)."""

    def get_headers(self, *args: Any, **options: Any) -> list[tuple[str, str]]:
        """Return the headers of the answer."""
        return [*super().get_headers(*args, **options), ("Accept-Encoding", "identity")]


class BodyLimit(NamedTuple):
    """How much more than others the body of one path may be, which its view takes in pieces.

    A feature puts it into `app.config["BODY_LIMITS"]`, under the exact path.
    """

    size: int
    """Bytes."""
    seconds: float
    """Until all of it has arrived."""


class Body(QuartBody):
    """A body whose limit holds for what has arrived.

    Quart's holds for what is buffered, and a parser that takes the pieces out as they come keeps
    the buffer empty: a chunked form had no end.
    """

    _arrived = 0
    _unwanted = False

    def __init__(
        self,
        expected_content_length: int | None,
        max_content_length: int | None,
        *,
        held: int | None = None,
    ) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._held = held
        self._taken = asyncio.Event()

    def append(self, data: bytes) -> None:
        """Take a piece in; drop it, and what is there already, once there is too much."""
        self._arrived += len(data)
        limit = compat.size_limit(self)
        if limit is not None and self._arrived > limit and compat.failure(self) is None:
            compat.fail(self, RequestEntityTooLarge())
        if not self._unwanted:
            super().append(data)  # which keeps nothing when there is something to raise

    async def wait_for_room(self) -> None:
        """Wait until the view has taken enough for more to be received."""
        while self._held is not None and compat.buffered(self) >= self._held:
            self._taken.clear()
            await self._taken.wait()

    def refuse(self) -> None:
        """Drop what the view has not taken, and what still arrives: the answer is on its way."""
        if self._held is None:
            return
        self._unwanted = True
        self.clear()
        self._taken.set()

    async def __anext__(self) -> bytes:
        try:
            data = await super().__anext__()
        except StopAsyncIteration:
            error = compat.failure(self)
            if error is not None:  # it became too large while this waited for more
                raise error from None
            raise
        self._taken.set()
        return data


class FormDataParser(QuartFormDataParser):
    """A parser that counts the fields of either kind of form, and leaves nothing on the disk.

    Too many are answered with 413 for both: Werkzeug does so for parts, and a browser's form does
    not change what it means by being sent in the other way.
    """

    def __init__(self, **options: Any) -> None:
        # Files stay in memory, which the limit of the body bounds. Werkzeug's temporary files
        # would hold the event loop up while they are written, and stay open when a form is
        # refused halfway.
        super().__init__(stream_factory=lambda *_: BytesIO(), **options)

    async def _parse_urlencoded(
        self, body: QuartBody, mimetype: str, content_length: int | None, options: dict[str, str]
    ) -> Any:
        # Counted before they are made: a megabyte of separators would be a million pairs.
        if self.max_form_parts is not None and (await body).count(b"&") >= self.max_form_parts:
            raise RequestEntityTooLarge
        return await super()._parse_urlencoded(body, mimetype, content_length, options)

    parse_functions: dict[str, Any] = {  # noqa: RUF012 as Quart has it
        **QuartFormDataParser.parse_functions,
        "application/x-www-form-urlencoded": _parse_urlencoded,
        "application/x-url-encoded": _parse_urlencoded,
    }


class Request(QuartRequest):
    body_class = Body
    form_data_parser_class = FormDataParser
    json_body = b""
    """The body, once a view has read it as JSON."""

    @cached_property
    def blueprints(self) -> list[str]:
        """The names of the blueprints, innermost first. Quart asks for them five times a page."""
        return super().blueprints


class Connection(ASGIHTTPConnection):
    """Takes in more for the paths that are named, and no faster than their views do.

    Quart receives as fast as it can: a large body would be in memory as a whole, however small the
    pieces in which it is read.
    """

    def _create_request_from_scope(self, send: ASGISendCallable) -> QuartRequest:
        incoming = super()._create_request_from_scope(send)
        larger: BodyLimit | None = self.app.config["BODY_LIMITS"].get(incoming.path)
        if larger is not None:
            incoming.max_content_length = larger.size
            incoming.body = Body(incoming.content_length, larger.size, held=MAX_BUFFERED_BYTES)
        return incoming

    async def handle_messages(self, request: QuartRequest, receive: ASGIReceiveCallable) -> None:
        body = request.body

        async def receive_when_there_is_room() -> Any:
            if isinstance(body, Body):
                await body.wait_for_room()
            return await receive()

        await super().handle_messages(request, receive_when_there_is_room)

    async def handle_request(self, request: QuartRequest, send: ASGISendCallable) -> None:
        body = request.body

        async def answer(message: Any) -> None:
            if isinstance(body, Body):
                body.refuse()
            await send(message)

        await super().handle_request(request, answer)


async def iterate_body(incoming: QuartRequest) -> AsyncIterator[bytes]:
    """Yield a body as it arrives, in pieces of 64 KiB or less.

    Raises:
        RequestEntityTooLarge: it is larger than its path may take.
        RequestTimeout: it, or the next piece of it, takes too long.
    """
    config, loop = current_app.config, asyncio.get_running_loop()
    gap: float = config["BODY_TIMEOUT"]
    larger: BodyLimit | None = config["BODY_LIMITS"].get(incoming.path)
    end = loop.time() + (larger.seconds if larger else gap)
    arriving = aiter(incoming.body)
    while True:
        try:
            async with asyncio.timeout(min(gap, end - loop.time())):
                data = await anext(arriving)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestTimeout from None
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


async def iterate_uploaded_file(incoming: QuartRequest, name: str) -> AsyncIterator[bytes]:
    """Yield the content of a form's file as it arrives; nothing if the form has none.

    Everything else in the form is passed over. For files that are too large for `request.files`,
    which has them in memory as a whole.

    Args:
        incoming: whose body nobody has read.
        name: of the field.

    Raises:
        BadRequest: the form is broken, or ends too soon.
        RequestEntityTooLarge: as `pieces`, or there are too many fields.
        RequestTimeout: as `pieces`.
    """
    boundary = incoming.mimetype_params.get("boundary")
    if incoming.mimetype != "multipart/form-data" or not boundary:
        raise BadRequest
    try:
        # Never more than a piece and what was left of the one before: heads of parts are small.
        decoder = MultipartDecoder(
            boundary.encode("ascii"),
            4 * CHUNK_BYTES,
            max_parts=current_app.config["MAX_FORM_PARTS"],
        )
        wanted = False
        async for piece in iterate_body(incoming):
            decoder.receive_data(piece)
            while not isinstance(event := decoder.next_event(), NeedData):
                if isinstance(event, File | Field):
                    wanted = isinstance(event, File) and event.name == name
                elif isinstance(event, Data) and wanted and event.data:
                    yield event.data
        decoder.receive_data(None)
        while not isinstance(decoder.next_event(), Epilogue):
            pass
    except ValueError:
        raise BadRequest from None


def submitted_values(incoming: BaseRequestWebsocket) -> list[str]:
    """Return what the client sent as parameters: of the path, the query, the form or the JSON.

    The last two only as far as a view has read them: this waits for nothing.
    """
    form = compat.parsed_form(incoming)
    fields = [incoming.args] if form is None else [incoming.args, form]
    return [
        *map(str, (incoming.view_args or {}).values()),
        *(value for each in fields for _, value in each.items(multi=True)),
        *_json_values(getattr(incoming, "json_body", b"")),
    ]


def _json_values(body: bytes) -> list[str]:
    """Return the values in JSON that was read without an error before, as texts."""
    found: list[str] = []
    waiting = [json.loads(body)] if body else []
    while waiting:
        match waiting.pop():
            case dict() as members:
                waiting += members.values()
            case list() as items:
                waiting += items
            case value:
                found.append(str(value))
    return found


def refuse_encoded_body(incoming: BaseRequestWebsocket) -> None:
    """Refuse a compressed body, which would be read as it is, and taken for a form without fields.

    Raises:
        UnsupportedContentCodingError: `Content-Encoding` names anything but `identity`.
    """
    lines = incoming.headers.getlist("Content-Encoding")
    codings = {each.strip().lower() for line in lines for each in line.split(",")}
    if codings - {"", "identity"}:
        raise UnsupportedContentCodingError(CONTENT_ENCODING_REFUSED)
