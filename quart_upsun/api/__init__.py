"""Building blocks for a JSON API under `/api/`. Features add the resources.

- `init_app` serves the API of an application, `/openapi.json` and `/docs`.
- `@scope_required` authenticates a request by access token or login session, and checks the scope;
  `current_caller()` returns the user.
- `@validate_json`, `@validate_query` and `@accept_file` validate requests; `@document_response` and
  `@document_problem` add responses to `/openapi.json`.
- `@idempotent` replays the first response to a retried request.
- `Problem` is an error in the format `application/problem+json`.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart import Quart

    from quart_upsun.api.auth import (
        Caller,
        TokenAuthenticator,
        TokenUser,
        by_caller,
        current_caller,
        scope_required,
    )
    from quart_upsun.api.idempotency import idempotent
    from quart_upsun.api.problems import Problem
    from quart_upsun.api.scopes import Scope
    from quart_upsun.api.validation import (
        Text,
        accept_file,
        document_problem,
        document_response,
        json_response,
        validate_json,
        validate_query,
    )

__all__ = [
    "Caller",
    "Problem",
    "Scope",
    "Text",
    "TokenAuthenticator",
    "TokenUser",
    "accept_file",
    "by_caller",
    "current_caller",
    "document_problem",
    "document_response",
    "idempotent",
    "init_app",
    "json_response",
    "scope_required",
    "validate_json",
    "validate_query",
]


def init_app(app: "Quart") -> None:
    """Serve an API: its OpenAPI document and reference, and CORS headers.

    Args:
        app: an application that `QuartUpsun.init_app` has initialized.
    """
    # Imported here because migrations import the models of this package; see `quart_upsun.lazy`.
    from quart_upsun.api import cors, openapi

    state = app.extensions["quart_upsun"]
    cors.init_app(app, state.settings.allowed_origins)
    openapi.init_app(app, state.settings)
    app.register_blueprint(openapi.blueprint)


if not TYPE_CHECKING:
    __getattr__ = exporter(
        __name__, __all__, ("scopes", "problems", "auth", "idempotency", "validation")
    )
