"""Route policies: access, caching, rate limits and audit events, declared with decorators.

Decorators set fields of a view's `RoutePolicy`. The middleware and the OpenAPI document read it. A
test can walk the URL map and check that every route has a complete policy.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

View = TypeVar("View", bound=Callable[..., Awaitable[Any]])

NO_STORE = "private, no-store"
IMMUTABLE = "public, max-age=31536000, immutable"
OWN_CACHE_CONTROL = "own"
"""The view sets `Cache-Control` itself. Without it, or with an error, it is `NO_STORE`."""

PUBLIC = "public"
API = "api"


SCOPE_LENGTH = 20  # characters of a scope name; the database column has the same limit


@dataclass(frozen=True, order=True)
class Scope:
    """A permission of an access token.

    Args:
        name: `<resource>:read` or `<resource>:write`, at most 20 characters.
        sentence: what the scope allows. Shown on the page where users create tokens.

    Raises:
        ValueError: the name is too long.
    """

    name: str
    sentence: str

    def __post_init__(self) -> None:
        if len(self.name) > SCOPE_LENGTH:
            raise ValueError(
                f"Scope names have at most {SCOPE_LENGTH} characters, got {self.name!r}."
            )


class RateLimit(Protocol):
    """A rate limit: `count` requests in `seconds`. See `quart_upsun.security.Limit`."""

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
    """Header names and their descriptions."""
    media_types: tuple[str, ...] = ()
    """The media types of a file download."""


@dataclass(frozen=True)
class RoutePolicy:
    """The policy of one view. None means that the view does not declare the field."""

    access: str | None = None
    """Who may call the view: `public`, `api`, or a rule of the application, such as `login`."""
    needs_proof: bool = False
    """Whether the view requires a recent proof of the user's identity."""
    cache_control: str | None = None
    """The `Cache-Control` header of a successful response."""
    limit: RateLimit | None = None
    is_limit_partial: bool = False
    """Whether the rate limit counts only some of the requests."""
    no_limit_reason: str | None = None
    """Why the view, or the requests that its limit does not count, need no rate limit."""
    audit_events: tuple[str, ...] = ()
    """The events that the view records in the audit trail."""
    no_audit_reason: str | None = None
    """Why a view that changes data records no audit event."""
    scope: Scope | None = None
    """The scope that an access token needs."""
    is_idempotent: bool = False
    """Whether the view accepts an `Idempotency-Key` header."""
    responses: dict[int, Response] = field(default_factory=dict)
    """Documented responses by status code."""
    problems: dict[int, str] = field(default_factory=dict)
    """Error status codes that the view itself returns, and what each means."""
    is_always_open: bool = False
    """Whether the view works during maintenance and in read-only mode."""
    request_media_type: str | None = None
    """The media type of a file in the request body."""


def policy_of(view: Callable[..., Any] | None) -> RoutePolicy:
    """Return the policy of a view, or an empty policy if it has none."""
    found = getattr(view, "route_policy", None)
    return found if isinstance(found, RoutePolicy) else RoutePolicy()


def declare(view: View, **values: Any) -> View:
    """Set fields of a view's policy and return the view.

    A decorator that wraps the view with `functools.wraps` keeps the policy.

    Raises:
        TypeError: `RoutePolicy` has no such field.
    """
    view.route_policy = replace(policy_of(view), **values)  # type: ignore[attr-defined]
    return view


def public(view: View) -> View:
    """Allow access without login."""
    return declare(view, access=PUBLIC)


def cache_public(seconds: int) -> Callable[[View], View]:
    """Let shared caches, such as the Upsun router, cache the page for `seconds`.

    Browsers do not cache it. Pages for logged-in users are never cached.
    """
    return lambda view: declare(view, cache_control=f"public, max-age=0, s-maxage={seconds}")


def cache_immutable(view: View) -> View:
    """Let browsers and shared caches keep the response for a year without revalidation.

    Use it for content whose URL contains its digest and that is the same for every client.
    """
    return declare(view, cache_control=IMMUTABLE)


def no_store(view: View) -> View:
    """Forbid caching of the response."""
    return declare(view, cache_control=NO_STORE)


def no_rate_limit(reason: str) -> Callable[[View], View]:
    """Declare why a view, or the requests that its limit does not count, need no rate limit.

    Use it for reads that cost little more than counting them.
    """
    return lambda view: declare(view, no_limit_reason=reason)


def always_open(view: View) -> View:
    """Serve the view during maintenance and in read-only mode, as administrators must log in."""
    return declare(view, is_always_open=True)


def audited(*events: str) -> Callable[[View], View]:
    """Declare the events that a view records in the audit trail."""
    return lambda view: declare(view, audit_events=events)


def not_audited(reason: str) -> Callable[[View], View]:
    """Declare why a view that changes data records no audit event."""
    return lambda view: declare(view, no_audit_reason=reason)


def document_response_of(
    view: View, status: int, headers: Mapping[str, str], media_types: Iterable[str]
) -> View:
    """Add a documented response to a view's policy."""
    responses = {**policy_of(view).responses, status: Response(dict(headers), tuple(media_types))}
    return declare(view, responses=responses)


def document_problems_of(view: View, problems: Mapping[int, str]) -> View:
    """Add documented errors to a view's policy. Existing entries are kept."""
    return declare(view, problems={**problems, **policy_of(view).problems})
