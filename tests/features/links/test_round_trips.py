"""What the list of links asks of the database: who asks, and the links."""

from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import event

from app.links import library
from app.links.api import READ
from tests.features.api.resources import token_of
from tests.features.factories import Person

LIST = "/api/v1/links?limit=20"


class Statements:
    """Everything that goes to the database through the pool."""

    def __init__(self, app: Quart) -> None:
        self.seen: list[str] = []
        engine = app.extensions["database"].engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, connection: object, cursor: object, statement: str, *rest: object) -> None:
        self.seen.append(statement)


async def links_of(app: Quart, person: Person) -> None:
    async with app.extensions["database"].write() as session:
        for number in range(25):
            await library.save(session, person.id, f"https://example.com/{number}")


async def test_with_a_token_it_is_two_statements(app: Quart, client: Client) -> None:
    ada = await Person("ada").register(app)
    await links_of(app, ada)
    token = await token_of(app, ada, READ)
    headers = {"X-API-Key": token}
    await client.get(LIST, headers=headers)  # the first use of a token is noted
    statements = Statements(app)
    response = await client.get(LIST, headers=headers)
    assert len((await response.get_json())["items"]) == 20
    assert len(statements.seen) == 2, statements.seen
    assert all(each.lstrip().startswith("SELECT") for each in statements.seen)


async def test_with_a_login_it_is_two_statements(app: Quart, client: Client) -> None:
    ada = await Person("ada").register(app)
    await links_of(app, ada)
    await ada.log_in(client)
    statements = Statements(app)
    response = await client.get(LIST)
    assert len((await response.get_json())["items"]) == 20
    assert len(statements.seen) == 2, statements.seen


async def test_a_read_begins_no_transaction(app: Quart, client: Client) -> None:
    """BEGIN and ROLLBACK would be round trips that nobody sees above."""
    ada = await Person("ada").register(app)
    token = await token_of(app, ada, READ)
    engine = app.extensions["database"].engine.sync_engine
    seen: list[str] = []

    def note(connection: object) -> None:
        driver = connection.connection.dbapi_connection  # type: ignore[attr-defined]
        seen.append("autocommit" if driver.autocommit else "transaction")

    event.listen(engine, "begin", note)
    await client.get(LIST, headers={"X-API-Key": token})
    assert set(seen) == {"autocommit"}
