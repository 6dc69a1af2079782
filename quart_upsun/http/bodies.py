"""Request bodies: size limits, form field limits, backpressure and streaming."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from functools import cached_property
from io import BytesIO
from typing import Any, NamedTuple

from quart import Request as QuartRequest
from quart import current_app
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

# Backpressure for large bodies: stop receiving while this many bytes wait for the view.
MAX_BUFFERED_BYTES = 512 * 1024
CHUNK_BYTES = 64 * 1024

CONTENT_ENCODING_REFUSED = "The request body must not have a Content-Encoding."


class UnsupportedContentCodingError(UnsupportedMediaType):
    """415 with the accepted content coding in `Accept-Encoding` (RFC 9110, section 15.5.16)."""

    def get_headers(self, *args: Any, **options: Any) -> list[tuple[str, str]]:
        """Return the response headers."""
        return [*super().get_headers(*args, **options), ("Accept-Encoding", "identity")]


class BodyLimit(NamedTuple):
    """A larger request body limit for one path, whose view reads the body as a stream.

    Set it in `app.config["BODY_LIMITS"]`, with the exact path as the key, or with `/path/*` for all
    paths below `/path/`. The view reads the body with `iterate_body` or `iterate_uploaded_file`.
    """

    size: int
    """The maximum size, in bytes."""
    seconds: float
    """The timeout for the whole body, in seconds."""


def larger_limit(config: Mapping[str, Any], path: str) -> BodyLimit | None:
    """Return the larger body limit of a path, or None if it has the usual one."""
    limits: dict[str, BodyLimit] = config["BODY_LIMITS"]
    exact = limits.get(path)
    if exact is not None:
        return exact
    for pattern, limit in limits.items():
        if pattern.endswith("/*") and path.startswith(pattern[:-1]):
            return limit
    return None


class Body(QuartBody):
    """A request body whose size limit applies to all bytes received.

    Quart applies the limit to buffered bytes only. Its form parsers empty the buffer as data
    arrives, so a chunked form could be of any size.
    """

    _received = 0
    _discarding = False

    def __init__(
        self,
        expected_content_length: int | None,
        max_content_length: int | None,
        *,
        max_buffered: int | None = None,
    ) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._max_buffered = max_buffered
        self._drained = asyncio.Event()

    def append(self, data: bytes) -> None:
        """Add received data. Over the limit, drop all data and let reading raise a 413."""
        self._received += len(data)
        limit = compat.size_limit(self)
        if limit is not None and self._received > limit and compat.failure(self) is None:
            compat.fail(self, RequestEntityTooLarge())
        if not self._discarding:
            super().append(data)  # keeps nothing after `compat.fail`

    async def wait_for_room(self) -> None:
        """Wait until the buffer has room for more data."""
        while self._max_buffered is not None and compat.buffered(self) >= self._max_buffered:
            self._drained.clear()
            await self._drained.wait()

    def discard(self) -> None:
        """Discard unread and future data, because the response has started."""
        if self._max_buffered is None:
            return
        self._discarding = True
        self.clear()
        self._drained.set()

    async def __anext__(self) -> bytes:
        try:
            data = await super().__anext__()
        except StopAsyncIteration:
            error = compat.failure(self)
            if error is not None:  # the body exceeded its limit during the wait
                raise error from None
            raise
        self._drained.set()
        return data


class FormDataParser(QuartFormDataParser):
    """A form parser that limits the fields of both form encodings and keeps files in memory.

    Werkzeug limits the parts of a multipart form only. Here a URL-encoded form with too many fields
    is a 413, too.
    """

    def __init__(self, **options: Any) -> None:
        # The body limit bounds the memory. Writing Werkzeug's temporary files would block the event
        # loop, and they would stay open when a form is rejected halfway.
        super().__init__(stream_factory=lambda *_: BytesIO(), **options)

    async def _parse_urlencoded(
        self, body: QuartBody, mimetype: str, content_length: int | None, options: dict[str, str]
    ) -> Any:
        # Count before parsing: a megabyte of separators would become a million fields.
        if self.max_form_parts is not None and (await body).count(b"&") >= self.max_form_parts:
            raise RequestEntityTooLarge
        return await super()._parse_urlencoded(body, mimetype, content_length, options)

    parse_functions: dict[str, Any] = {  # noqa: RUF012 as in Quart
        **QuartFormDataParser.parse_functions,
        "application/x-www-form-urlencoded": _parse_urlencoded,
        "application/x-url-encoded": _parse_urlencoded,
    }


class Request(QuartRequest):
    """A request with this module's body and form parser."""

    body_class = Body
    form_data_parser_class = FormDataParser
    json_body = b""
    """The raw body, after a view has read it as JSON."""

    @cached_property
    def blueprints(self) -> list[str]:
        """The names of the blueprints, innermost first. Cached: Quart reads it often."""
        return super().blueprints


async def iterate_body(incoming: QuartRequest) -> AsyncIterator[bytes]:
    """Stream a request body in chunks of at most 64 KiB.

    Args:
        incoming: the request. Its body must not have been read.

    Raises:
        RequestEntityTooLarge: the body exceeds the limit of its path.
        RequestTimeout: no data arrived within `BODY_TIMEOUT` seconds, or the whole body not within
            the `seconds` of its `BodyLimit`.
    """
    config, loop = current_app.config, asyncio.get_running_loop()
    chunk_timeout: float = config["BODY_TIMEOUT"]
    larger = larger_limit(config, incoming.path)
    deadline = loop.time() + (larger.seconds if larger else chunk_timeout)
    body = aiter(incoming.body)
    while True:
        try:
            async with asyncio.timeout(min(chunk_timeout, deadline - loop.time())):
                data = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestTimeout from None
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


async def iterate_uploaded_file(incoming: QuartRequest, name: str) -> AsyncIterator[bytes]:
    """Stream an uploaded file of a multipart form. Yield nothing if the form has no such file.

    All other fields are ignored. Use it for files that are too large for `request.files`, which
    keeps whole files in memory.

    Args:
        incoming: the request. Its body must not have been read.
        name: the name of the file's field.

    Raises:
        BadRequest: the body is not a valid multipart form, or is incomplete.
        RequestEntityTooLarge: the body exceeds the limit of its path, or has too many fields.
        RequestTimeout: the body arrives too slowly, as for `iterate_body`.
    """
    boundary = incoming.mimetype_params.get("boundary")
    if incoming.mimetype != "multipart/form-data" or not boundary:
        raise BadRequest
    try:
        # The buffer never holds more than a chunk and the rest of the previous one.
        decoder = MultipartDecoder(
            boundary.encode("ascii"),
            4 * CHUNK_BYTES,
            max_parts=current_app.config["MAX_FORM_PARTS"],
        )
        wanted = False
        async for chunk in iterate_body(incoming):
            decoder.receive_data(chunk)
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
    """Return all values that the client sent in the path, the query, the form or the JSON body.

    Form and JSON values are included only if the view has already read the body.
    """
    form = compat.parsed_form(incoming)
    fields = [incoming.args] if form is None else [incoming.args, form]
    return [
        *map(str, (incoming.view_args or {}).values()),
        *(value for each in fields for _, value in each.items(multi=True)),
        *_json_values(getattr(incoming, "json_body", b"")),
    ]


def _json_values(body: bytes) -> list[str]:
    """Return all scalar values of a valid JSON document as strings."""
    found: list[str] = []
    remaining = [json.loads(body)] if body else []
    while remaining:
        match remaining.pop():
            case dict() as members:
                remaining += members.values()
            case list() as items:
                remaining += items
            case value:
                found.append(str(value))
    return found


def refuse_encoded_body(incoming: BaseRequestWebsocket) -> None:
    """Reject a compressed request body. It would be parsed as it is, as a form without fields.

    Raises:
        UnsupportedContentCodingError: the request has a `Content-Encoding` other than `identity`.
    """
    lines = incoming.headers.getlist("Content-Encoding")
    codings = {each.strip().lower() for line in lines for each in line.split(",")}
    if codings - {"", "identity"}:
        raise UnsupportedContentCodingError(CONTENT_ENCODING_REFUSED)
