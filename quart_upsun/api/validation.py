"""Validate API requests and document API responses.

Requests are validated by pydantic, but not with quart-schema's decorators: those build a validator
for each request, which costs as much as a query. And `@validate_request` uses Python's JSON parser,
which fails on deep nesting, and treats a form as an empty body.

Responses are documented, but not validated: pydantic has validated the model when it was created.
Validating it again and using Python's encoder would cost more than the rest of a view.
"""

from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar, cast

import quart_schema
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from quart import Response, request
from quart_schema import (
    RequestSchemaValidationError,
    document_querystring,
    document_request,
)
from quart_schema.validation import QuerystringValidationError

from quart_upsun.api.problems import DETAILS, Problem
from quart_upsun.policy import declare, document_problems_of, document_response_of

# JSON and URLs can contain NUL, which PostgreSQL cannot store.
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]

P = ParamSpec("P")
T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Awaitable[Any]])


def validate_json(model: type[BaseModel]) -> Callable[[Callable[..., Awaitable[T]]], Any]:
    """Parse the JSON body as this model, and pass it to the view as `data`.

    Responds with 415 if the content type is not JSON, 400 if the body is not valid JSON, and 422
    with a list of `errors` if it does not match the model.
    """
    adapter = TypeAdapter(model)

    def decorate(view: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        @wraps(view)
        async def validated(*args: Any, **kwargs: Any) -> T:
            if not request.is_json:
                raise Problem(415, DETAILS[415])
            # Windows tools write a byte order mark, which RFC 8259 allows parsers to ignore.
            body = cast(bytes, await request.get_data()).removeprefix(BOM_UTF8)
            try:
                data = adapter.validate_json(body, strict=True)
            except ValidationError as error:
                raise RequestSchemaValidationError(error) from None
            request.json_body = body  # type: ignore[attr-defined] # so that the log can redact it
            return await view(*args, data=data, **kwargs)

        document_request(model)(validated)
        return document_problems_of(
            validated, {408: DETAILS[408], 413: DETAILS[413], 415: DETAILS[415]}
        )

    return decorate


def validate_query(model: type[BaseModel]) -> Callable[[Callable[..., Awaitable[T]]], Any]:
    """Parse the query parameters as this model, and pass it to the view as `query`.

    Responds with 422 and a list of `errors` if they do not match the model.
    """

    def decorate(view: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        @wraps(view)
        async def validated(*args: Any, **kwargs: Any) -> T:
            # A repeated parameter becomes a list, which most models reject.
            found = {
                name: values if len(values) > 1 else values[0]
                for name, values in request.args.lists()
            }
            try:
                query = model.model_validate(found)
            except ValidationError as error:
                raise QuerystringValidationError(error) from None
            return await view(*args, query=query, **kwargs)

        return document_querystring(model)(validated)

    return decorate


def accept_file(media_type: str) -> Callable[[Callable[P, Awaitable[T]]], Any]:
    """Document that the body is a file of this media type, which the view reads as a stream.

    Responds with 415 to any other content type.
    """

    def decorate(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(view)
        async def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            if request.mimetype != media_type:
                raise Problem(415, detail)
            return await view(*args, **kwargs)

        checked = declare(checked, request_media_type=media_type)
        return document_problems_of(checked, {408: DETAILS[408], 413: DETAILS[413], 415: detail})

    detail = f"The request body must be {media_type}."
    return decorate


def document_response(
    status: int,
    model: type[BaseModel] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    files: Iterable[str] = (),
) -> Callable[[View], View]:
    """Document a response.

    Args:
        status: the HTTP status.
        model: model of the body; None if the response has no body or is a file.
        headers: names and descriptions of response headers.
        files: possible media types, if the response is a file.
    """

    def decorate(view: View) -> View:
        if model is not None:
            quart_schema.document_response(model, status)(view)
        return document_response_of(view, status, headers or {}, files)

    return decorate


def document_problem(status: int, detail: str) -> Callable[[View], View]:
    """Document an error that the view itself returns.

    Errors of decorators are documented automatically, and so is 404 for paths with variables.
    """
    return lambda view: document_problems_of(view, {status: detail})


def json_response(
    value: BaseModel, status: int = 200, *, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a model as a JSON response, serialized by pydantic."""
    response = Response(value.model_dump_json(), status, content_type="application/json")
    response.headers.update(headers or {})
    return response
