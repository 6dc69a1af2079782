"""A login on its way to a provider and back, kept in a signed cookie of the browser.

The response of the provider is accepted only in the browser that has this cookie. Otherwise, an
attacker could send a user to the callback with a response to a login of the attacker's own, and the
user would be logged in to the attacker's account: RFC 6749, section 10.12.
"""

import hmac
import secrets
from typing import Literal, NamedTuple, Self

from quart import request
from quart.typing import ResponseTypes

from quart_upsun.current import current_toolkit
from quart_upsun.http.cookies import delete_cookie, set_cookie
from quart_upsun.security import signing

LIFETIME_SECONDS = 600
SIGNING_PURPOSE = "login with a provider"

Purpose = Literal["login", "link", "proof"]


class Flow(NamedTuple):
    """A login with a provider that has begun."""

    provider: str
    purpose: Purpose
    state: str
    nonce: str
    verifier: str
    """The secret of PKCE, of which the provider knows only the digest until the end."""
    target: str | None
    """The path to continue at."""
    session_id: int | None
    """The session that links a login or proves itself; None to log in."""
    started_at: float

    @classmethod
    def start(
        cls,
        provider: str,
        purpose: Purpose,
        *,
        now: float,
        target: str | None = None,
        session_id: int | None = None,
    ) -> Self:
        """Return a new flow with random secrets."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return cls(provider, purpose, state, nonce, verifier, target, session_id, now)

    def matches(self, state: str) -> bool:
        """Tell whether a response with this state belongs to the flow."""
        return hmac.compare_digest(self.state.encode(), state.encode())


def cookie_name() -> str:
    return f"{current_toolkit().settings.cookie_prefix}provider"


def remember(response: ResponseTypes, flow: Flow) -> None:
    """Set the cookie of a flow. It replaces that of another flow in the same browser."""
    set_cookie(
        response,
        cookie_name(),
        signing.sign(SIGNING_PURPOSE, list(flow)),
        max_age=LIFETIME_SECONDS,
    )


def current() -> Flow | None:
    """Return the flow of this browser; None if there is none or it has expired."""
    cookie = request.cookies.get(cookie_name(), "")
    content = signing.verify(SIGNING_PURPOSE, cookie, max_age=LIFETIME_SECONDS)
    return Flow(*content) if content else None


def forget(response: ResponseTypes) -> None:
    """Delete the cookie, so that the flow cannot be used again."""
    delete_cookie(
        response,
        cookie_name(),
    )
