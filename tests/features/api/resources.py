"""The application with a test resource, and tokens for it.

`python -m tests.features.api.resources` serves it.
"""

import secrets
import sys

from quart import Quart

from app import create_app
from app.settings import Settings, load_settings
from quart_upsun.api.auth import TokenUser
from quart_upsun.api.scopes import Scope
from quart_upsun.security.limits import Limit
from quart_upsun.server import serve as server
from quart_upsun.testing.things import CHANGES, READ, WRITE, things
from tests.features.factories import Person


def application(settings: Settings, limit: Limit = CHANGES) -> Quart:
    """Create the application with the test resource."""
    app = create_app(settings)
    app.register_blueprint(things(limit))
    return app


async def token_of(app: Quart, person: Person, *scopes: Scope) -> str:
    """Return a token that the application accepts, even without the tokens feature."""
    upsun = app.extensions["quart_upsun"]
    next_authenticator = upsun.token_authenticator
    token = secrets.token_urlsafe()
    names = frozenset(scope.name for scope in scopes or (READ, WRITE))

    async def authenticate(candidate: str) -> TokenUser | None:
        if candidate == token:
            return TokenUser(person.id, person.username, names)
        return await next_authenticator(candidate) if next_authenticator else None

    upsun.token_authenticator = authenticate
    return token


if __name__ == "__main__":
    # No rate limit, because schemathesis sends many requests.
    sys.exit(
        server.main(
            lambda settings: application(settings, Limit("things", 10**6, 1)), load_settings
        )
    )
