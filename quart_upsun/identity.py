"""Who is logged in, as far as the toolkit needs to know.

The application finds the user of a request and calls `set_session_user`. The toolkit itself has no
table of users: limits, the audit trail, the API and live pages know a user by the number alone.
"""

from typing import Protocol, cast

from quart import g


class SessionUser(Protocol):
    """A user as the toolkit sees one."""

    @property
    def id(self) -> int: ...

    @property
    def username(self) -> str: ...


def set_session_user(user: SessionUser | None) -> None:
    """Say who is logged in, for the rest of this request."""
    g.user = user


def session_user() -> SessionUser | None:
    """Return who is logged in with this request; None if nobody is."""
    return cast(SessionUser | None, g.get("user"))
