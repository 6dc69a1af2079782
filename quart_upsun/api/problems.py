"""Error responses of the API: `application/problem+json` (RFC 9457).

https://www.rfc-editor.org/rfc/rfc9457. The type is always `about:blank`: programs use the status,
and members such as `errors` for details.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError
from quart.wrappers import Response
from quart_schema import RequestSchemaValidationError
from quart_schema.validation import QuerystringValidationError
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES

from quart_upsun.http.preconditions import PRECONDITION_FAILED
from quart_upsun.switches.state import SwitchedOffError

CONTENT_TYPE = "application/problem+json"
DETAILS = {
    400: "The request is malformed.",
    401: "Authentication required. Send an access token, or log in.",
    403: "You do not have permission to do this.",
    404: "Not found. Check the URL.",
    405: "Method not allowed. The Allow header lists the allowed methods.",
    408: "The request timed out before it was received completely.",
    412: PRECONDITION_FAILED,
    413: "The request is too large.",
    415: "The request body must be application/json.",
    422: "The request does not match the API schema.",
    429: "Too many requests. Retry after the time in the Retry-After header.",
    500: "Internal server error. The error has been logged.",
    503: "The API is temporarily unavailable. Retry in a few seconds.",
}
NOT_JSON = "The request body must be valid JSON in UTF-8."
MAX_ERRORS = 20  # a long array can have any number of errors
MAX_SEGMENT_LENGTH = 80  # characters of a JSON Pointer segment, which clients can choose


class FieldError(BaseModel):
    """A validation error, without the invalid value."""

    detail: str = Field(description="What is wrong")
    pointer: str | None = Field(
        default=None,
        description="Location in the body: a JSON Pointer (RFC 6901) after #",
    )
    parameter: str | None = Field(default=None, description="Name of the query parameter")


class ProblemAnswer(BaseModel):
    """An error (RFC 9457). It may have additional members."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None


class Problem(HTTPException):
    """An API error with its own detail message.

    Args:
        status: the HTTP status.
        detail: an explanation for people; it must not repeat values from the request.
        headers: additional response headers.
        members: additional members of the response, for programs.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.code = status
        self.members = members
        self.headers = dict(headers or {})

    def get_headers(self, *args: Any, **options: Any) -> list[tuple[str, str]]:
        """Return Werkzeug's headers and the additional ones."""
        return [*super().get_headers(*args, **options), *self.headers.items()]


def problem_response(error: HTTPException) -> Response:
    """Return the response for an error, without the error's own headers."""
    status = error.code or 500
    members: Mapping[str, Any] = {}
    detail = DETAILS.get(status, f"{_title(status)}.")
    if isinstance(error, RequestSchemaValidationError):
        status, detail, members = _validation(error)
    elif isinstance(error, SwitchedOffError):
        detail = error.description or detail
    elif status < 500 and error.description and error.description != type(error).description:
        detail = error.description  # set by the application, not Werkzeug's default
    if isinstance(error, Problem):
        members = error.members
    body = {
        "type": "about:blank",
        "title": _title(status),
        "status": status,
        "detail": detail,
        **members,
    }
    return Response(json.dumps(body), status, content_type=CONTENT_TYPE)


def _title(status: int) -> str:
    return HTTP_STATUS_CODES.get(status, "Error")


def _validation(error: RequestSchemaValidationError) -> tuple[int, str, dict[str, Any]]:
    """Return status, detail and members for a validation error.

    The status is 400 if the body is not JSON, otherwise 422.
    """
    cause = error.validation_error
    if not isinstance(cause, ValidationError):
        return 422, DETAILS[422], {}
    found = cause.errors(include_url=False, include_input=False, include_context=False)
    of_query = isinstance(error, QuerystringValidationError)
    errors = []
    for each in found[:MAX_ERRORS]:
        if each["type"] == "json_invalid" and not each["loc"]:
            return 400, NOT_JSON, {}
        path = [str(part)[:MAX_SEGMENT_LENGTH] for part in each["loc"]]
        # Of Pydantic's messages, only this one repeats a value from the request.
        message = (
            "Value has an unknown type" if each["type"] == "union_tag_invalid" else each["msg"]
        )
        place = {"parameter": path[0]} if of_query and path else {"pointer": _pointer(path)}
        errors.append({"detail": message.removeprefix("Value error, "), **place})
    cut = f" Only the first {MAX_ERRORS} errors are listed." if len(found) > MAX_ERRORS else ""
    return 422, f"{DETAILS[422]}{cut}", {"errors": errors}


def _pointer(path: list[str]) -> str:
    escaped = (part.replace("~", "~0").replace("/", "~1") for part in path)
    return "#" + "".join(f"/{quote(part, safe='~')}" for part in escaped)
