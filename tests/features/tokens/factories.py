"""Access tokens for tests."""

from quart import Quart

from app.user import accounts
from app.user.tokens import access_tokens
from quart_upsun.api.scopes import Scope
from quart_upsun.testing.things import READ, WRITE
from tests.features.factories import Person


async def make_token(app: Quart, person: Person, *scopes: Scope, days: int = 7) -> str:
    """Create a token without a form."""
    async with app.extensions["quart_upsun"].database.write() as session:
        user = await accounts.get_user(session, person.id)
        assert user is not None
        names = [scope.name for scope in scopes or (READ, WRITE)]
        return await access_tokens.create_token(
            session, user, name="a test", scopes=names, days=days
        )
