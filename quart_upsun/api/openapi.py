"""The OpenAPI 3.1 document, `/openapi.json`, generated from the routes under `/api/`."""

import json
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter
from quart import Blueprint, Quart, Response, current_app, render_template, url_for
from quart_schema import (
    APIKeySecurityScheme,
    HttpSecurityScheme,
    Info,
    OpenAPIProvider,
    QuartSchema,
    Server,
)
from werkzeug.routing import Rule
from werkzeug.routing.converters import BaseConverter, IntegerConverter

from quart_upsun.api.models import KEY_LENGTH
from quart_upsun.api.problems import CONTENT_TYPE, DETAILS, ProblemAnswer
from quart_upsun.compat.quart_schema import (
    REF_TEMPLATE,
    convert_only_models,
    openapi_provider,
    takes_query,
    views_of,
)
from quart_upsun.current import current_toolkit
from quart_upsun.http import credentials
from quart_upsun.policy import cache_public, no_rate_limit, policy_of, public
from quart_upsun.settings import Settings

blueprint = Blueprint("docs", __name__)

DESCRIPTION = """\
**Authentication**

Create an access token on your account page, and send it as `Authorization: Bearer …` or
`X-API-Key: …`. Each operation lists the scope that the token needs. Scripts on the pages of this
site can use the login cookie instead.

**Errors**

Errors have the format `application/problem+json` (RFC 9457). After a 429 or 503 response, wait for
the number of seconds in `Retry-After` before you retry.

**Idempotent requests**

Operations with an `Idempotency-Key` header can be retried safely. For 24 hours, a request with the
same key returns the response of the first one, with the header `Idempotency-Replayed: true`.

**Conditional requests**

Resources with an `ETag` support conditional requests. Send `If-None-Match` to read a resource only
if it has changed, and `If-Match` to change it only if it has not: otherwise the response is 412.

**Pagination**

Lists are paginated. `next` and the `Link` header contain the URL of the next page.
"""
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A unique key. A retry with the same key returns the first response.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": KEY_LENGTH,
        "pattern": "^[!-~]+$",
    },
}

# Binary content, described by its media type alone:
# https://spec.openapis.org/oas/v3.1.0#considerations-for-file-uploads
FILE: dict[str, Any] = {}


class Provider(OpenAPIProvider):
    """Add to quart-schema's document what this package's decorators declare."""

    def generate_rules(self) -> Iterable[Rule]:
        rules = (rule for rule in super().generate_rules() if is_api(rule))
        return sorted(rules, key=lambda rule: rule.rule)

    def build_path_parameter(self, name: str, converter: BaseConverter) -> dict[str, Any]:
        parameter = super().build_path_parameter(name, converter)
        if isinstance(converter, IntegerConverter):
            parameter["schema"] |= {"format": "int64", "minimum": 0}
        return parameter

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        paths, components = super().build_paths(rule)
        view = views_of(self)[rule.endpoint]
        for operations in paths.values():
            for operation in operations.values():
                _complete(operation, view, rule)
        return paths, components

    def schema(self) -> dict[str, Any]:
        document = super().schema()
        problem = TypeAdapter(ProblemAnswer).json_schema(
            ref_template=REF_TEMPLATE, mode="serialization"
        )
        schemas = document["components"]["schemas"]
        schemas.update(problem.pop("$defs"))
        schemas["Problem"] = problem
        return document


def init_app(app: Quart, settings: Settings) -> None:
    """Set up quart-schema without its own documentation pages, which load scripts from a CDN."""
    schema = QuartSchema(
        openapi_path=None,
        info=Info(title=settings.site_name, version="1", description=DESCRIPTION),
        servers=[Server(url=settings.origin)],
        security_schemes={
            "bearer": HttpSecurityScheme(scheme="bearer"),
            "key": APIKeySecurityScheme(name="X-API-Key", in_="header"),
            "session": APIKeySecurityScheme(name=app.config["LOGIN_COOKIE_NAME"], in_="cookie"),
        },
        conversion_preference="pydantic",
        openapi_provider_class=Provider,
    )
    make_response = app.make_response
    schema.init_app(app)
    convert_only_models(app, make_response)


def is_api(rule: Rule) -> bool:
    """Return whether a route belongs to the API."""
    return rule.rule.startswith(credentials.API_PREFIX)


@blueprint.get("/openapi.json")
@cache_public(300)
@public
@no_rate_limit("generated once, and cached by the router")
async def openapi() -> Response:
    """Return the OpenAPI document, generated once per process."""
    text: str | None = current_app.extensions.get("API_DOCUMENT")
    if text is None:
        text = json.dumps(openapi_provider(current_app).schema())
        current_app.extensions["API_DOCUMENT"] = text
    return Response(text, content_type="application/json")


@blueprint.get("/docs")
@cache_public(300)
@public
@no_rate_limit("no query, and cached by the router")
async def show() -> str:
    """Show the API reference with Swagger UI, served from the site's own assets."""
    endpoint = current_toolkit().tokens_endpoint
    return await render_template(
        "api/docs.html",
        tokens_url=url_for(endpoint) if endpoint is not None else None,
    )


def _complete(operation: dict[str, Any], view: Any, rule: Rule) -> None:
    """Add the policy of its view to an operation."""
    policy = policy_of(view)
    operation["description"] = operation.get("description", "").strip()
    responses = operation["responses"]
    for status, known in policy.responses.items():
        response = responses.setdefault(status, {})
        response["description"] = response.get("description") or DETAILS.get(status, "Success.")
        if known.headers:
            response["headers"] = {
                name: {"description": meaning, "schema": {"type": "string"}}
                for name, meaning in known.headers.items()
            }
        if known.media_types:
            response["content"] = dict.fromkeys(known.media_types, FILE)
    if policy.request_media_type:
        operation["requestBody"] = {"content": {policy.request_media_type: FILE}}
    if "requestBody" in operation:
        operation["requestBody"]["required"] = True
    if scope := policy.scope:
        operation["description"] = f"{operation['description']}\n\nScope: `{scope.name}`".strip()
        # Since OpenAPI 3.1, schemes other than OAuth 2 can list scopes, too.
        operation["security"] = [{"bearer": [scope.name]}, {"key": [scope.name]}, {"session": []}]
    if policy.is_idempotent:
        operation["parameters"].append(IDEMPOTENCY_KEY)
    for status, detail in sorted(_problems(operation, view, rule).items()):
        responses.setdefault(
            status,
            {
                "description": detail,
                "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        )


def _problems(operation: dict[str, Any], view: Any, rule: Rule) -> dict[int, str]:
    """Return the errors that an operation can return, by status."""
    policy = policy_of(view)
    found = [400, 503]
    if policy.scope:
        found += [401, 403]
    if "requestBody" in operation or takes_query(view):
        found += [422]
    if policy.is_idempotent:
        found += [409, 422]
    if policy.limit:
        found += [429]
    if rule.arguments:
        # A value that does not match the variable can match another route, with other methods.
        found += [404, 405]
    details = {**DETAILS, 409: "The request conflicts with another request. Retry later."}
    return {**{status: details[status] for status in found}, **policy.problems}
