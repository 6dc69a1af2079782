"""Conditional requests: entity tags and dates as preconditions (RFC 9110, section 13).

Not Quart's `make_conditional`: it reads only the first line of a repeated header, answers 412 to
`If-Match: *`, and has nothing for a request that changes something.
"""

import re
from typing import NamedTuple

from quart import Response, request
from werkzeug.exceptions import BadRequest, PreconditionFailed

PRECONDITION_FAILED = "The resource's current version does not match the request's preconditions."

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
# As section 5.6.1 has it, a list may have empty elements.
_LIST = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,(?:[ \t]*{_TAG})?)*[ \t]*")


class EntityTags(NamedTuple):
    """The tags of `If-Match` or `If-None-Match`, without quotes."""

    any: bool
    """Whether the header is `*`, which matches whatever exists."""
    strong: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()

    def match_weakly(self, etag: str) -> bool:
        """Tell whether a version is among them, as `If-None-Match` compares."""
        return self.any or etag in self.strong | self.weak

    def match_strongly(self, etag: str) -> bool:
        """Tell the same as `If-Match` compares: a weak tag never matches, not even itself."""
        return self.any or etag in self.strong


def has_preconditions() -> bool:
    """Tell whether the request has preconditions that `require_preconditions` evaluates."""
    return "If-Match" in request.headers or "If-None-Match" in request.headers


def require_preconditions(etag: str) -> None:
    """Evaluate the preconditions of a request that changes a resource which exists.

    Args:
        etag: the resource's current tag, strong, without quotes.

    Raises:
        PreconditionFailed: the resource is at another version.
        BadRequest: a header is malformed. Ignoring it could overwrite somebody else's change.
    """
    _require_match(etag)
    found = _entity_tags("If-None-Match")
    if found is not None and found.match_weakly(etag):
        raise PreconditionFailed(PRECONDITION_FAILED)


def make_conditional(response: Response) -> Response:
    """Return the answer to a GET or HEAD, or 304 without a body if the client has this version.

    Args:
        response: with a strong `ETag`, and with `Last-Modified` if the resource has one.

    Raises:
        PreconditionFailed: the client asks for another version.
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
        for name in ("Content-Length", "Content-Type"):  # of a body that is not sent
            response.headers.pop(name, None)
    return response


def _is_not_modified(etag: str, response: Response) -> bool:
    """Tell whether the client has the current version already."""
    try:
        found = _entity_tags("If-None-Match")
    except BadRequest:
        return False  # the whole answer is right whatever the client meant
    if found is not None:
        return found.match_weakly(etag)
    modified, since = response.last_modified, request.if_modified_since
    return modified is not None and since is not None and modified <= since


def _require_match(etag: str) -> None:
    found = _entity_tags("If-Match")
    if found is not None and not found.match_strongly(etag):
        raise PreconditionFailed(PRECONDITION_FAILED)


def _entity_tags(name: str) -> EntityTags | None:
    """Return the tags that a header lists; None if the request does not have it.

    Raises:
        BadRequest: it is malformed.
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
