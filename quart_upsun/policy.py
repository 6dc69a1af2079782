"""What each route declares about itself, in one typed object.

Decorators fill the `RoutePolicy` of a view: who may see it, who may cache it, how often a client
may call it, what it records in the audit trail. The middleware and the API document read it, and a
test can walk the URL map and hold every route to it.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

View = TypeVar("View", bound=Callable[..., Awaitable[Any]])

NO_STORE = "private, no-store"
IMMUTABLE = "public, max-age=31536000, immutable"

PUBLIC = "public"
API = "api"


SCOPE_LENGTH = 20  # characters of a name, in the database


@dataclass(frozen=True, order=True)
class Scope:
    """One thing that a token may be good for.

    Args:
        name: `<resource>:read` or `<resource>:write`, of at most 20 characters.
        sentence: what it allows, for the page on which tokens are made.
    """

    name: str
    sentence: str

    def __post_init__(self) -> None:
        if len(self.name) > SCOPE_LENGTH:
            raise ValueError(
                f"the name of a scope has at most {SCOPE_LENGTH} characters: {self.name}"
            )


class RateLimit(Protocol):
    """So many requests in so many seconds; see `quart_upsun.security.limits.Limit`."""

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def seconds(self) -> int: ...


@dataclass(frozen=True)
class Response:
    """A documented response of an API view."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """Names of headers, and what each says."""
    media_types: tuple[str, ...] = ()
    """Those that a file may have."""


@dataclass(frozen=True)
class RoutePolicy:
    """The declarations of one view. None means that the view declares nothing."""

    access: str | None = None
    """`public`, `api`, or a rule of the application's own, such as `login`."""
    cache_control: str | None = None
    """The `Cache-Control` of a successful response."""
    limit: RateLimit | None = None
    is_limit_partial: bool = False
    """Whether the limit counts only some of the requests."""
    no_limit_reason: str | None = None
    """Why the view, or what its limit does not count, needs no rate limit."""
    audit_events: tuple[str, ...] = ()
    no_audit_reason: str | None = None
    scope: Scope | None = None
    is_idempotent: bool = False
    """Whether it takes an `Idempotency-Key`."""
    responses: dict[int, Response] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    """Errors that the view itself answers, and what each means."""
    request_media_type: str | None = None
    """The media type of a file in the request body."""


def policy_of(view: Callable[..., Any] | None) -> RoutePolicy:
    """Return the policy of a view; an empty one if it declares nothing."""
    found = getattr(view, "route_policy", None)
    return found if isinstance(found, RoutePolicy) else RoutePolicy()


def declare(view: View, **values: Any) -> View:
    """Set fields of a view's policy, and return the view.

    Decorators that wrap a view with `functools.wraps` pass its policy on.

    Raises:
        TypeError: a field does not exist.
    """
    view.route_policy = replace(policy_of(view), **values)  # type: ignore[attr-defined]
    return view


def public(view: View) -> View:
    """Let everybody see the view, logged in or not."""
    return declare(view, access=PUBLIC)


def cache_public(seconds: int) -> Callable[[View], View]:
    """Let the router cache the page for `seconds`, and browsers not at all.

    Only as long as nobody is logged in; the page of a logged-in user is not cached.
    """
    return lambda view: declare(view, cache_control=f"public, max-age=0, s-maxage={seconds}")


def cache_immutable(view: View) -> View:
    """Let every cache keep the response for ever.

    For content that is named by its digest, and is the same for every client.
    """
    return declare(view, cache_control=IMMUTABLE)


def no_store(view: View) -> View:
    """Keep the response out of every cache."""
    return declare(view, cache_control=NO_STORE)


def no_rate_limit(reason: str) -> Callable[[View], View]:
    """Declare that a view, or what its limit does not count, needs no rate limit.

    For reads that cost little more than counting them would.
    """
    return lambda view: declare(view, no_limit_reason=reason)


def audited(*events: str) -> Callable[[View], View]:
    """Declare which events a view records in the audit trail."""
    return lambda view: declare(view, audit_events=events)


def not_audited(reason: str) -> Callable[[View], View]:
    """Declare that a view that changes something records nothing, and why."""
    return lambda view: declare(view, no_audit_reason=reason)


def document_response_of(
    view: View, status: int, headers: Mapping[str, str], media_types: Iterable[str]
) -> View:
    """Add a documented response to a view's policy."""
    responses = {**policy_of(view).responses, status: Response(dict(headers), tuple(media_types))}
    return declare(view, responses=responses)


def document_problems_of(view: View, problems: Mapping[int, str]) -> View:
    """Add documented errors to a view's policy; those that are there already win."""
    return declare(view, problems={**problems, **policy_of(view).problems})
