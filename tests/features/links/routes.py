"""What the tests that walk all routes need of this feature."""

from quart import Quart

from app.links import public_lists
from tests.features.factories import Person

SHARED = {"/lists/1/1/"}
"""Addresses that caches may share."""


async def prepare(app: Quart) -> None:
    """Put something at the addresses of public lists, whose variables are all `1`."""
    person = await Person("1").register(app)
    async with app.extensions["quart_upsun"].database.write() as session:
        await public_lists.publish_tag(session, person.id, "1")
