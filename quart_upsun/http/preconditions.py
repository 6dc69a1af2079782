"""Conditional requests with entity tags and dates (RFC 9110, section 13).

Quart's `make_conditional` is not enough: it reads only the first of several header lines, returns
412 for `If-Match: *`, and does not support requests that change a resource.
"""

import re
from typing import NamedTuple

from quart import Response, request
from werkzeug.exceptions import BadRequest, PreconditionFailed

PRECONDITION_FAILED = "The current version of the resource does not match the preconditions."

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
# RFC 9110, section 5.6.1: a list may have empty elements.
_LIST = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,(?:[ \t]*{_TAG})?)*[ \t]*")


class EntityTags(NamedTuple):
    """The entity tags of an `If-Match` or `If-None-Match` header, without quotes."""

    any: bool
    """Whether the header is `*`, which matches every existing resource."""
    strong: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()

    def match_weakly(self, etag: str) -> bool:
        """Tell whether a tag matches by weak comparison, as for `If-None-Match`."""
        return self.any or etag in self.strong | self.weak

    def match_strongly(self, etag: str) -> bool:
        """Tell whether a tag matches by strong comparison, as for `If-Match`."""
        return self.any or etag in self.strong


def has_preconditions() -> bool:
    """Tell whether the request has an `If-Match` or `If-None-Match` header."""
    return "If-Match" in request.headers or "If-None-Match" in request.headers


def require_preconditions(etag: str) -> None:
    """Check the preconditions of a request that changes an existing resource.

    Args:
        etag: the resource's current entity tag, strong, without quotes.

    Raises:
        PreconditionFailed: the resource has another version.
        BadRequest: a header is malformed. Ignoring it could lose another client's update.
    """
    _require_match(etag)
    found = _entity_tags("If-None-Match")
    if found is not None and found.match_weakly(etag):
        raise PreconditionFailed(PRECONDITION_FAILED)


def make_conditional(response: Response) -> Response:
    """Make the response to a GET or HEAD conditional: 304 if the client has the current version.

    Args:
        response: the complete response, with a strong `ETag` and optionally `Last-Modified`. It is
            modified in place and returned.

    Raises:
        PreconditionFailed: `If-Match` or `If-Unmodified-Since` does not match.
        BadRequest: `If-Match` is malformed.
    """
    etag, _ = response.get_etag()
    _require_match(etag or "")
    modified, since = response.last_modified, request.if_unmodified_since
    if "If-Match" not in request.headers and modified and since and modified > since:
        raise PreconditionFailed(PRECONDITION_FAILED)
    if _is_not_modified(etag or "", response):
        response.status_code = 304
        response.set_data(b"")
        for name in ("Content-Length", "Content-Type"):  # a 304 has no body
            response.headers.pop(name, None)
    return response


def _is_not_modified(etag: str, response: Response) -> bool:
    """Tell whether the client already has the current version."""
    try:
        found = _entity_tags("If-None-Match")
    except BadRequest:
        return False  # the full response is always correct
    if found is not None:
        return found.match_weakly(etag)
    modified, since = response.last_modified, request.if_modified_since
    return modified is not None and since is not None and modified <= since


def _require_match(etag: str) -> None:
    found = _entity_tags("If-Match")
    if found is not None and not found.match_strongly(etag):
        raise PreconditionFailed(PRECONDITION_FAILED)


def _entity_tags(name: str) -> EntityTags | None:
    """Parse a header with entity tags. Return None if the request does not have it.

    Raises:
        BadRequest: the header is malformed.
    """
    lines = request.headers.getlist(name)
    if not lines:
        return None
    value = ", ".join(lines).strip()
    if value == "*":
        return EntityTags(any=True)
    if not _LIST.fullmatch(value):
        raise BadRequest(f"{name} must be * or a list of quoted entity tags.")
    tags = re.findall(_TAG, value)
    return EntityTags(
        any=False,
        strong=frozenset(each[1:-1] for each in tags if not each.startswith("W/")),
        weak=frozenset(each[3:-1] for each in tags if each.startswith("W/")),
    )
