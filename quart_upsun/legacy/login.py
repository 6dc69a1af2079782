"""The login of this application, as a mounted application sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

LOGIN = "quart_upsun.login"
"""The key of the `MountedLogin` in the WSGI environment."""


@dataclass
class MountedLogin:
    """Who is logged in to this application. A client cannot forge it.

    This application has verified the login of this request, including that it was not revoked.
    """

    user_id: str | None
    """The id of the user, or None if nobody is logged in."""
    username: str | None
    session: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The session of this application, read-only."""
    is_logged_out: bool = False
    """Whether the mounted application has logged the user out."""

    def log_out(self) -> None:
        """Log the user out of this application, too. The response deletes the login cookie."""
        self.is_logged_out = True
