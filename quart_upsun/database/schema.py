"""The toolkit's tables without Alembic: for a small application, an example or a test."""

from sqlalchemy import URL, Connection

from quart_upsun.database.base import Base, load_models
from quart_upsun.database.connection import unpooled_engine
from quart_upsun.database.ownership import UPSERT_OWNER, Identity, read_owner, require_owner


async def create_schema(url: URL, identity: Identity, *packages: str) -> None:
    """Create the tables, indexes, functions and triggers that do not exist, and claim the database.

    An application that lives longer than its first schema needs Alembic instead: an existing table
    is left as it is.

    Args:
        url: of the database, as `Settings.database_url` has it.
        identity: the environment whose jobs are run, as `Settings.identity` has it.
        packages: names of applications whose models belong to the schema as well.

    Raises:
        ForeignDatabaseError: the database belongs to another environment.
        NoConnectionError: it does not answer.
    """
    load_models(*packages)

    def create(connection: Connection) -> None:
        owner = read_owner(connection)
        if owner is not None:
            require_owner(owner, identity)
        Base.metadata.create_all(connection)
        connection.execute(UPSERT_OWNER, {"environment": identity.name, "type": identity.type})

    engine = unpooled_engine(url, name="quart-upsun schema")
    try:
        async with engine.begin() as connection:
            await connection.run_sync(create)
    finally:
        await engine.dispose()
