"""The application with a small resource, and tokens for it.

`python -m tests.features.api.resources` serves it.
"""

import sys

from quart import Quart

from app import create_app
from app.settings import Settings, load_settings
from app.user import accounts
from app.user.tokens import access_tokens as tokens
from quart_upsun.api.scopes import Scope
from quart_upsun.security.limits import Limit
from quart_upsun.server import serve as server
from quart_upsun.tests.api.things import CHANGES, READ, WRITE, things
from tests.features.factories import Person


def application(settings: Settings, limit: Limit = CHANGES) -> Quart:
    """The application with things."""
    app = create_app(settings)
    app.register_blueprint(things(limit))
    return app


async def token_of(app: Quart, person: Person, *scopes: Scope, days: int = 7) -> str:
    """Make a token without a form."""
    async with app.extensions["quart_upsun"].database.write() as session:
        user = await accounts.get_user(session, person.id)
        assert user is not None
        names = [scope.name for scope in scopes or (READ, WRITE)]
        return await tokens.create_token(session, user, name="a test", scopes=names, days=days)


if __name__ == "__main__":
    # To a program that tries everything no limit shall get into the way.
    sys.exit(
        server.main(
            lambda settings: application(settings, Limit("things", 10**6, 1)), load_settings
        )
    )
