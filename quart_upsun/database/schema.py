"""Create the schema without Alembic, for a small application, an example or a test."""

from sqlalchemy import URL, Connection

from quart_upsun.database.base import Base, load_models
from quart_upsun.database.connection import unpooled_engine
from quart_upsun.database.ownership import UPSERT_OWNER, Identity, read_owner, require_owner


async def create_schema(url: URL, identity: Identity, *packages: str) -> None:
    """Create missing tables, indexes, functions and triggers, and become the database's owner.

    Existing tables are not changed. An application whose schema changes needs Alembic instead.

    Args:
        url: the database, from `Settings.database_url`.
        identity: the environment of this process, from `Settings.identity`.
        packages: names of application packages whose models to include.

    Raises:
        ForeignDatabaseError: the database belongs to another environment.
        NoConnectionError: the database does not answer.
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
