"""Who asks the API: by a token, or by the login cookie of our own pages."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Literal, ParamSpec, Protocol, TypeVar, cast

from quart import g, request

from quart_upsun.api.problems import Problem
from quart_upsun.api.scopes import Scope
from quart_upsun.current import current_toolkit
from quart_upsun.http import credentials
from quart_upsun.identity import session_user
from quart_upsun.policy import API, declare

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    id: int
    username: str
    via: Literal["token", "session"]


@dataclass(frozen=True, slots=True)
class TokenUser:
    """The user that a token belongs to, and its scopes."""

    id: int
    username: str
    scopes: frozenset[str]


class TokenAuthenticator(Protocol):
    """What the application offers where users can make tokens."""

    async def __call__(self, token: str) -> TokenUser | None:
        """Return whose token it is; None if it is unknown, revoked or expired."""


def scope_required(
    scope: Scope,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Let in who has a token with this scope, or is logged in: the login rule of an API view.

    It stands above `@rate_limit(…, by_caller)` and whatever else asks for the `current_caller()`.
    """

    def decorate(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(view)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            g.caller = await _caller(scope)
            return await view(*args, **kwargs)

        return declare(guarded, access=API, scope=scope)

    return decorate


def current_caller() -> Caller:
    """Return who asks, in a view below `@scope_required`."""
    return cast(Caller, g.caller)


def by_caller() -> str:
    """Return what stands for the caller in a limit: the account, whatever the token."""
    return f"user {current_caller().id}"


def unauthorized(detail: str, challenge: str = 'Bearer realm="api"') -> Problem:
    """Return the error for who is nobody we know.

    Args:
        detail: a sentence.
        challenge: says it to programs, https://www.rfc-editor.org/rfc/rfc6750#section-3
    """
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


async def _caller(scope: Scope) -> Caller:
    """Return who asks.

    Raises:
        Problem: 401, nobody we know; 403, the token is for something else; 400, two tokens.
    """
    found = credentials.presented_tokens(request.headers)
    if not found:
        # The cross-site check has looked at a request that changes something, as for a page.
        user = session_user()
        if user is None:
            raise unauthorized("This needs a token, or a login.")
        return Caller(user.id, user.username, "session")
    if len(found) > 1:
        raise Problem(400, "There are two different tokens in this request.")
    authenticate = current_toolkit().token_authenticator
    holder = await authenticate(found.pop()) if authenticate else None
    if holder is None:
        # Why not is none of the business of who does not have a token.
        raise unauthorized(
            "This token is not valid, or not any more.", 'Bearer error="invalid_token"'
        )
    if scope.name not in holder.scopes:
        challenge = f'Bearer error="insufficient_scope", scope="{scope.name}"'
        raise Problem(
            403,
            f"The token is not good for this: it lacks the scope {scope.name}.",
            headers={"WWW-Authenticate": challenge},
            scope=scope.name,
        )
    return Caller(holder.id, holder.username, "token")
