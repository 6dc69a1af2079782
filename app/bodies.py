"""How much of a request's body is taken in, into how many fields, and what came in with it."""

from io import BytesIO
from typing import Any

from quart import Request as QuartRequest
from quart.formparser import FormDataParser as QuartFormDataParser
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.request import Body as QuartBody
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge


class Body(QuartBody):
    """A body whose limit holds for what has arrived.

    Quart's holds for what is buffered, and a parser that takes the pieces out as they come keeps
    the buffer empty: a chunked form had no end.
    """

    _arrived = 0

    def append(self, data: bytes) -> None:
        """Take a piece in; drop it, and what is there already, once there is too much."""
        self._arrived += len(data)
        limit = self._max_content_length
        if limit is not None and self._arrived > limit and self._must_raise is None:
            self._must_raise = RequestEntityTooLarge()
            self.clear()
            self.set_complete()
        super().append(data)  # which keeps nothing when there is something to raise

    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            if self._must_raise is not None:  # it became too large while this waited for more
                raise self._must_raise from None
            raise


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


def sent_values(incoming: BaseRequestWebsocket) -> list[str]:
    """Return what the client sent as parameters: of the path, the query and the form.

    The form only as far as a view has read it: this waits for nothing.
    """
    form: MultiDict[str, str] | None = getattr(incoming, "_form", None)
    fields = [incoming.args] if form is None else [incoming.args, form]
    return [
        *map(str, (incoming.view_args or {}).values()),
        *(value for each in fields for _, value in each.items(multi=True)),
    ]
