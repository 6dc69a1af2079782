"""Private APIs of quart-schema 0.25."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from quart import Quart
from quart_schema import OpenAPIProvider, QuartSchema
from quart_schema.conversion import PYDANTIC_REF_TEMPLATE
from quart_schema.validation import QUART_SCHEMA_QUERYSTRING_ATTRIBUTE
from werkzeug.sansio.response import Response as BaseResponse

MakeResponse: TypeAlias = Callable[[Any], Awaitable[Any]]

# The location of schemas in the OpenAPI document, for references to `Problem`.
REF_TEMPLATE = PYDANTIC_REF_TEMPLATE


def takes_query(view: Callable[..., Any]) -> bool:
    """Tell whether a view validates query parameters, so that it can return a 422."""
    return hasattr(view, QUART_SCHEMA_QUERYSTRING_ATTRIBUTE)


def views_of(provider: OpenAPIProvider) -> Mapping[str, Callable[..., Any]]:
    """Return the views that a provider documents, by endpoint."""
    views: Mapping[str, Callable[..., Any]] = provider._app.view_functions
    return views


def convert_only_models(app: Quart, make_response: MakeResponse) -> None:
    """Let what is a response already pass by quart-schema, which looks for models in each.

    Args:
        app: after quart-schema's `init_app`.
        make_response: the application's method from before.
    """
    convert: MakeResponse = app.make_response

    async def make(result: Any) -> Any:
        is_response = isinstance(result, str | bytes | BaseResponse)
        return await (make_response if is_response else convert)(result)

    app.make_response = make  # type: ignore[method-assign]


def openapi_provider(app: Quart) -> OpenAPIProvider:
    """Return the OpenAPI provider. quart-schema's own route would call it on every request."""
    extension: QuartSchema = app.extensions["QUART_SCHEMA"]
    return extension.openapi_provider
