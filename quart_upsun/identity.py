"""The current user, as far as the toolkit needs it.

The application finds the user of a request and calls `set_session_user`. The toolkit has no table
of users: rate limits, the audit trail, the API and live pages use only the user's id.
"""

from typing import Protocol, cast

from quart import g

from quart_upsun.measure import set_user_id


class SessionUser(Protocol):
    """A user, as the toolkit sees it."""

    @property
    def id(self) -> int: ...

    @property
    def username(self) -> str: ...


def set_session_user(user: SessionUser | None) -> None:
    """Set the user of the current request's session; None if nobody is logged in."""
    g.user = user
    set_user_id(user.id if user is not None else None)


def session_user() -> SessionUser | None:
    """Return the user of the current request's session; None if nobody is logged in."""
    return cast(SessionUser | None, g.get("user"))
