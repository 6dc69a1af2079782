"""What every error under `/api/` is answered with: `application/problem+json`.

RFC 9457, https://www.rfc-editor.org/rfc/rfc9457. All are of the type `about:blank`: the status says
what a program needs to know, and `errors` or another member says the rest.
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

CONTENT_TYPE = "application/problem+json"
DETAILS = {
    400: "The request could not be understood.",
    401: "This needs a token, or a login.",
    403: "You are not allowed to do this.",
    404: "There is nothing at this address.",
    405: "This address does not take this method.",
    408: "The request took too long to arrive.",
    412: PRECONDITION_FAILED,
    413: "What was sent is too large.",
    415: "The body must be application/json.",
    422: "What was sent does not fit the API's document.",
    429: "Too many requests. Wait as long as Retry-After says.",
    500: "Something went wrong on our side. The error has been logged.",
    503: "The API is not available at the moment. Try again in a few seconds.",
}
NOT_JSON = "The body must be valid JSON in UTF-8."
MOST_ERRORS = 20  # that are listed; a long array could have any number
LONGEST_PART = 80  # characters of a pointer's part, which may be a name that the client made up


class FieldError(BaseModel):
    """One thing that is wrong, without the value that was sent."""

    detail: str = Field(description="What is wrong, in words")
    pointer: str | None = Field(
        default=None, description="Where in the body: a JSON Pointer (RFC 6901) behind a #"
    )
    parameter: str | None = Field(default=None, description="Which parameter of the query")


class ProblemAnswer(BaseModel):
    """What went wrong (RFC 9457). Members that are not listed here may be added."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None


class Problem(HTTPException):
    """An error with a sentence of its own.

    Args:
        status: the HTTP status.
        detail: a sentence for who reads the answer, without a value that was sent.
        headers: for the answer.
        members: further ones of the answer, for programs.
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
        """Return the headers, beside those that Werkzeug gives each error."""
        return [*super().get_headers(*args, **options), *self.headers.items()]


def problem_response(error: HTTPException) -> Response:
    """Return the answer to an error, but for the headers that belong to it."""
    status = error.code or 500
    members: Mapping[str, Any] = {}
    detail = DETAILS.get(status, f"{_title(status)}.")
    if isinstance(error, RequestSchemaValidationError):
        status, detail, members = _validation(error)
    elif status < 500 and error.description and error.description != type(error).description:
        detail = error.description  # a sentence of ours, not the one that Werkzeug has for all
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
    """Return the status, the detail, and the members that say what is wrong where.

    The status is 400 for a body that is not JSON, else 422.
    """
    cause = error.validation_error
    if not isinstance(cause, ValidationError):
        return 422, DETAILS[422], {}
    found = cause.errors(include_url=False, include_input=False, include_context=False)
    of_query = isinstance(error, QuerystringValidationError)
    errors = []
    for each in found[:MOST_ERRORS]:
        if each["type"] == "json_invalid" and not each["loc"]:
            return 400, NOT_JSON, {}
        path = [str(part)[:LONGEST_PART] for part in each["loc"]]
        # Pydantic's messages name types and limits; this one alone repeats what it was given.
        message = (
            "Value is of no known kind" if each["type"] == "union_tag_invalid" else each["msg"]
        )
        place = {"parameter": path[0]} if of_query and path else {"pointer": _pointer(path)}
        errors.append({"detail": message.removeprefix("Value error, "), **place})
    cut = f" Only the first {MOST_ERRORS} errors are listed." if len(found) > MOST_ERRORS else ""
    return 422, f"{DETAILS[422]}{cut}", {"errors": errors}


def _pointer(path: list[str]) -> str:
    escaped = (part.replace("~", "~0").replace("/", "~1") for part in path)
    return "#" + "".join(f"/{quote(part, safe='~')}" for part in escaped)
