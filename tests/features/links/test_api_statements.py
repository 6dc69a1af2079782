"""The number of statements of the API's list of links."""

from quart import Quart
from quart.testing import QuartClient as Client

from app.links import queries
from app.links.api import READ
from quart_upsun.testing.statements import Statements
from tests.features.api.resources import token_of
from tests.features.factories import Person

LIST = "/api/v1/links?limit=20"


async def create_links(app: Quart, person: Person) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        for number in range(25):
            await queries.save_link(session, person.id, f"https://example.com/{number}")


async def test_api_list_with_token_needs_one_statement(app: Quart, client: Client) -> None:
    ada = await Person("ada").register(app)
    await create_links(app, ada)
    headers = {"X-API-Key": await token_of(app, ada, READ)}
    statements = Statements(app)
    response = await client.get(LIST, headers=headers)
    assert len((await response.get_json())["items"]) == 20
    assert len(statements.seen) == 1, statements.seen
    assert statements.seen[0].lstrip().startswith("SELECT")


async def test_api_list_with_session_needs_two_statements(app: Quart, client: Client) -> None:
    ada = await Person("ada").register(app)
    await create_links(app, ada)
    await ada.log_in(client)
    statements = Statements(app)
    response = await client.get(LIST)
    assert len((await response.get_json())["items"]) == 20
    assert len(statements.seen) == 2, statements.seen
