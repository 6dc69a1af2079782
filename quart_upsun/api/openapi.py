"""The API's document, `/openapi.json`: OpenAPI 3.1, made from the routes under `/api/`."""

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
from quart_upsun.identity import session_user
from quart_upsun.policy import cache_public, no_rate_limit, policy_of, public
from quart_upsun.settings import Settings

blueprint = Blueprint("docs", __name__)

DESCRIPTION = """\
Make an access token on the page of your account, and send it as `Authorization: Bearer …` or as
`X-API-Key: …`. Each operation names the scope that the token needs. A program in the pages of this
site may use the login cookie instead.

Errors are `application/problem+json` (RFC 9457). After 429 and 503 wait as long as `Retry-After`
says. What takes an `Idempotency-Key` may be sent again with the same key for 24 hours: it is done
once, and the first answer comes again with `Idempotency-Replayed: true`.

What has an `ETag` can be read with `If-None-Match` and changed with `If-Match`: 412 says that it is
at another version. Lists are pages: `next`, and a `Link` header, lead to the next one.
"""
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key with the same request: it is done once, and answered the same.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": KEY_LENGTH,
        "pattern": "^[!-~]+$",
    },
}

# Bytes of a media type, which no schema describes:
# https://spec.openapis.org/oas/v3.1.0#considerations-for-file-uploads
FILE: dict[str, Any] = {}


class Provider(OpenAPIProvider):
    """What quart-schema makes of a route, and what our own decorators know beside it."""

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
    """Set quart-schema up, without the pages of its own: they load scripts from elsewhere."""
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
    """Tell whether a route is one of the API's."""
    return rule.rule.startswith(credentials.API_PREFIX)


@blueprint.get("/openapi.json")
@cache_public(300)
@public
@no_rate_limit("made once, and the router keeps it")
async def openapi() -> Response:
    """Return the document. It is made once: routes do not change while a process lives."""
    text: str | None = current_app.extensions.get("API_DOCUMENT")
    if text is None:
        text = json.dumps(openapi_provider(current_app).schema())
        current_app.extensions["API_DOCUMENT"] = text
    return Response(text, content_type="application/json")


@blueprint.get("/docs")
@cache_public(300)
@public
@no_rate_limit("no query, and the router keeps it")
async def show() -> str:
    """Show the document as Swagger UI does, from our own assets."""
    endpoint = current_toolkit().tokens_endpoint
    return await render_template(
        "api/docs.html",
        user=session_user(),
        tokens_url=url_for(endpoint) if endpoint is not None else None,
    )


def _complete(operation: dict[str, Any], view: Any, rule: Rule) -> None:
    """Add to an operation what the policy of its view means."""
    policy = policy_of(view)
    operation["description"] = operation.get("description", "").strip()
    responses = operation["responses"]
    for status, known in policy.responses.items():
        response = responses.setdefault(status, {})
        response["description"] = response.get("description") or DETAILS.get(status, "Done.")
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
        # Since 3.1 other schemes than OAuth's may name what they need as well.
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
    """Return the errors that can be met there, by status."""
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
        # What does not fit the variable may lead to another address, which takes other methods.
        found += [404, 405]
    details = {**DETAILS, 409: "Another request is in the way."}
    return {**{status: details[status] for status in found}, **policy.problems}
