"""Quart's cookie session, without overhead for requests that do not use it."""

from itsdangerous import URLSafeTimedSerializer
from quart import Quart, Response
from quart.sessions import SecureCookieSessionInterface, SessionMixin
from werkzeug.wrappers import Response as WerkzeugResponse


class SessionInterface(SecureCookieSessionInterface):
    """A cookie session interface with a cached serializer. The keys of a process do not change."""

    def __init__(self) -> None:
        self._serializer: URLSafeTimedSerializer | None = None

    def get_signing_serializer(self, app: Quart) -> URLSafeTimedSerializer | None:
        """Return the serializer that signs sessions, or None if there is no secret key."""
        if self._serializer is None:
            self._serializer = super().get_signing_serializer(app)
        return self._serializer

    async def save_session(
        self, app: Quart, session: SessionMixin, response: Response | WerkzeugResponse | None
    ) -> None:
        """Save the session in its cookie, if the request used the session."""
        if session or session.modified or session.accessed:
            await super().save_session(app, session, response)
