"""quart-schema 0.25."""

from collections.abc import Callable, Mapping
from typing import Any

from quart import Quart
from quart_schema import OpenAPIProvider, QuartSchema
from quart_schema.conversion import PYDANTIC_REF_TEMPLATE
from quart_schema.validation import QUART_SCHEMA_QUERYSTRING_ATTRIBUTE

# Where the document's schemas are: that of `Problem` is added to them.
REF_TEMPLATE = PYDANTIC_REF_TEMPLATE


def takes_query(view: Callable[..., Any]) -> bool:
    """Tell whether a view documents parameters of the query, and so can answer 422."""
    return hasattr(view, QUART_SCHEMA_QUERYSTRING_ATTRIBUTE)


def views_of(provider: OpenAPIProvider) -> Mapping[str, Callable[..., Any]]:
    """Return the views that a provider documents, by endpoint: their policies say more of them."""
    views: Mapping[str, Callable[..., Any]] = provider._app.view_functions
    return views


def openapi_provider(app: Quart) -> OpenAPIProvider:
    """Return what makes the document: quart-schema's own route for it makes it at each request."""
    extension: QuartSchema = app.extensions["QUART_SCHEMA"]
    return extension.openapi_provider
