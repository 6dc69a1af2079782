"""Authenticate API requests by access token, or by the login cookie for the site's own pages."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Literal, ParamSpec, Protocol, TypeVar, cast

from quart import g, request

from quart_upsun.api.problems import DETAILS, Problem
from quart_upsun.api.scopes import Scope
from quart_upsun.current import current_toolkit
from quart_upsun.database.log_position import require_position
from quart_upsun.http import credentials
from quart_upsun.identity import session_user
from quart_upsun.measure import set_user_id
from quart_upsun.policy import API, declare

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated user of an API request."""

    id: int
    username: str
    via: Literal["token", "session"]


@dataclass(frozen=True, slots=True)
class TokenUser:
    """The owner of an access token, and the token's scopes."""

    id: int
    username: str
    scopes: frozenset[str]
    position: int = 0
    """The log position that reads must include; see `quart_upsun.database.log_position`."""


class TokenAuthenticator(Protocol):
    """Authenticates access tokens; set by applications whose users can create tokens."""

    async def __call__(self, token: str) -> TokenUser | None:
        """Return the owner of a token; None if it is unknown, revoked or expired."""


def scope_required(
    scope: Scope,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Require an access token with this scope, or a login session: the access rule of an API view.

    Place it above `@rate_limit(…, by_caller)` and anything else that uses `current_caller()`.
    """

    def decorate(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(view)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            g.caller = await _authenticate(scope)
            set_user_id(g.caller.id)
            return await view(*args, **kwargs)

        return declare(guarded, access=API, scope=scope)

    return decorate


def current_caller() -> Caller:
    """Return the authenticated user, in a view below `@scope_required`."""
    return cast(Caller, g.caller)


def by_caller() -> str:
    """Return the rate limit key of the caller: the account, whichever token it uses."""
    return f"user {current_caller().id}"


def unauthorized(detail: str, challenge: str = 'Bearer realm="api"') -> Problem:
    """Return the 401 error for an unauthenticated request.

    Args:
        detail: the error message.
        challenge: the `WWW-Authenticate` header, https://www.rfc-editor.org/rfc/rfc6750#section-3
    """
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


async def _authenticate(scope: Scope) -> Caller:
    """Authenticate the request.

    Raises:
        Problem: 401 without valid credentials; 403 if the token lacks the scope; 400 for two
            different tokens.
    """
    found = credentials.presented_tokens(request.headers)
    if not found:
        # The cross-site check has already run for requests that change something.
        user = session_user()
        if user is None:
            raise unauthorized(DETAILS[401])
        return Caller(user.id, user.username, "session")
    if len(found) > 1:
        raise Problem(400, "The request contains two different access tokens. Send only one.")
    authenticate = current_toolkit().token_authenticator
    owner = await authenticate(found.pop()) if authenticate else None
    if owner is None:
        # The response does not reveal the reason to a client without a valid token.
        raise unauthorized(
            "The access token is invalid or has expired.", 'Bearer error="invalid_token"'
        )
    if scope.name not in owner.scopes:
        challenge = f'Bearer error="insufficient_scope", scope="{scope.name}"'
        raise Problem(
            403,
            f"The access token is missing the required scope: {scope.name}.",
            headers={"WWW-Authenticate": challenge},
            scope=scope.name,
        )
    require_position(owner.position)
    return Caller(owner.id, owner.username, "token")
