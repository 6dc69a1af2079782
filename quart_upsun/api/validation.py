"""What an API view takes and answers: checked where it comes in, documented where it goes out.

Requests are validated by pydantic as quart-schema does it, and not by its decorators: these build a
validator anew for each request, which costs as much as a query. And `@validate_request` reads JSON
with Python's parser, which falls over deep nesting, and takes a form for no body at all.

Answers are documented and not validated: a model that was built has been validated already. To do
it once more, and to walk through Python's encoder, would cost more than the rest of a view.
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

# What PostgreSQL can keep: JSON and addresses can hold a NUL, and there it would be an error.
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]

P = ParamSpec("P")
T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Awaitable[Any]])


def validate_json(model: type[BaseModel]) -> Callable[[Callable[..., Awaitable[T]]], Any]:
    """Read the body as JSON of this model, and give it to the view as `data`.

    Answers 415 to what is no JSON by its header, 400 to what is none by its content, and 422 with
    a list of `errors` to what does not fit the model.
    """
    adapter = TypeAdapter(model)

    def decorate(view: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        @wraps(view)
        async def validated(*args: Any, **kwargs: Any) -> T:
            if not request.is_json:
                raise Problem(415, DETAILS[415])
            # RFC 8259 lets a parser ignore a byte order mark; Windows' tools write one.
            body = cast(bytes, await request.get_data()).removeprefix(BOM_UTF8)
            try:
                data = adapter.validate_json(body, strict=True)
            except ValidationError as error:
                raise RequestSchemaValidationError(error) from None
            request.json_body = body  # type: ignore[attr-defined] # for what must not be logged
            return await view(*args, data=data, **kwargs)

        document_request(model)(validated)
        return document_problems_of(
            validated, {408: DETAILS[408], 413: DETAILS[413], 415: DETAILS[415]}
        )

    return decorate


def validate_query(model: type[BaseModel]) -> Callable[[Callable[..., Awaitable[T]]], Any]:
    """Read the parameters of the address as this model, and give it to the view as `query`.

    Answers 422 with a list of `errors` to what does not fit the model.
    """

    def decorate(view: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        @wraps(view)
        async def validated(*args: Any, **kwargs: Any) -> T:
            # One that comes several times is a list, which is right for few and wrong for most.
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
    """Document that the body is a file of this type, which the view takes in pieces itself.

    Answers 415 to any other by its header.
    """

    def decorate(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(view)
        async def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            if request.mimetype != media_type:
                raise Problem(415, wanted)
            return await view(*args, **kwargs)

        checked = declare(checked, request_media_type=media_type)
        return document_problems_of(checked, {408: DETAILS[408], 413: DETAILS[413], 415: wanted})

    wanted = f"The body must be {media_type}."
    return decorate


def document_response(
    status: int,
    model: type[BaseModel] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    files: Iterable[str] = (),
) -> Callable[[View], View]:
    """Document an answer.

    Args:
        status: its HTTP status.
        model: of its body; None if it has none, or it is a file.
        headers: names of headers it carries, and what each says.
        files: the media types that the file may have.
    """

    def decorate(view: View) -> View:
        if model is not None:
            quart_schema.document_response(model, status)(view)
        return document_response_of(view, status, headers or {}, files)

    return decorate


def document_problem(status: int, detail: str) -> Callable[[View], View]:
    """Document an error that the view itself answers, as a problem.

    What decorators answer is documented by itself, and 404 where the path has a variable.
    """
    return lambda view: document_problems_of(view, {status: detail})


def json_response(
    value: BaseModel, status: int = 200, *, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a model as JSON, by pydantic's own encoder."""
    response = Response(value.model_dump_json(), status, content_type="application/json")
    response.headers.update(headers or {})
    return response
