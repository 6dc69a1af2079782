"""What the resources of a JSON API under `/api/` share. A feature brings the resources itself.

- `@scope_required` lets in the owner of an access token, or who is logged in;
  `current_caller()` is them.
- `@validate_json`, `@validate_query` and `@accept_file` check requests; `@document_response` and
  `@document_problem` complete `/openapi.json`.
- `@idempotent` answers a repeated request as it did the first time.
- `Problem` is an error as `application/problem+json`.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
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
    "json_response",
    "scope_required",
    "validate_json",
    "validate_query",
]

if not TYPE_CHECKING:
    __getattr__ = exporter(
        __name__, __all__, ("scopes", "problems", "auth", "idempotency", "validation")
    )
