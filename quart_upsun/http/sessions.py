"""Quart's cookie session, without its work on requests that have none."""

from itsdangerous import URLSafeTimedSerializer
from quart import Quart, Response
from quart.sessions import SecureCookieSessionInterface, SessionMixin
from werkzeug.wrappers import Response as WerkzeugResponse


class SessionInterface(SecureCookieSessionInterface):
    """Makes the signer once for each process: the keys do not change while it runs."""

    def __init__(self) -> None:
        self._serializer: URLSafeTimedSerializer | None = None

    def get_signing_serializer(self, app: Quart) -> URLSafeTimedSerializer | None:
        """Return the serializer that signs sessions; None without a secret key."""
        if self._serializer is None:
            self._serializer = super().get_signing_serializer(app)
        return self._serializer

    async def save_session(
        self, app: Quart, session: SessionMixin, response: Response | WerkzeugResponse | None
    ) -> None:
        """Set the session's cookie if the session has changed."""
        if session or session.modified or session.accessed:
            await super().save_session(app, session, response)
